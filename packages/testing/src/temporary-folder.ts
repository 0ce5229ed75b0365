import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** A test's context; or a whole file or group of tests, as `{ onTestFinished: afterAll }`. */
export interface Lifetime {
  /** What is given is done when it ends, the last given first. */
  onTestFinished(work: () => unknown): void;
}

/** Makes an empty folder that is removed with everything in it when test `t` ends. */
export async function makeTemporaryFolder(t: Lifetime, prefix = 'stillhouse-'): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), prefix));
  t.onTestFinished(() => rm(folder, { recursive: true, force: true }));
  return folder;
}
