import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { bundleSources, writeBundledFiles } from '@stillhouse/source-bundle';

export interface CommandBundlePlace {
  /** Exists and is empty; the files are written here. */
  readonly staging: string;
  /** The name that `staging` gets when all is written. */
  readonly folder: string;
}

/**
 * Bundles the command and its worker thread, with bundle.json, which has the sha256 of every file by its path.
 * `bin/command-bundle.js` calls this before anything else of the package is loaded.
 * @param root the repository
 * @returns false if the disk did not take the files: it is full, say
 * @throws esbuild's BuildFailure where a source is not TypeScript or imports what is not there
 */
export async function makeCommandBundle(root: string, { staging, folder }: CommandBundlePlace): Promise<boolean> {
  const files = await bundleSources({ root, folder, scripts: [join(root, 'packages', 'cli', 'src', 'main.ts')] });
  // Maps are read when a stack is shown, not at the start.
  const verified = files.filter(({ path }) => !path.endsWith('.map'));
  const digests = Object.fromEntries(verified.map(({ path, contents }) => [path, sha256(contents)]));
  try {
    const list = { path: 'bundle.json', contents: Buffer.from(JSON.stringify(digests)) };
    await writeBundledFiles(staging, [...files, list]);
    return true;
  } catch {
    return false;
  }
}

function sha256(contents: Uint8Array): string {
  return createHash('sha256').update(contents).digest('hex');
}
