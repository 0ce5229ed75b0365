import { rename, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { makeFolder } from './make-folder.ts';
import { syncDirectory } from './staged-file.ts';
import { explainWriteFailure } from './write-failure.ts';

/** Makes an empty hidden folder beside `path` in which to prepare what `publishDirectory` then shows there. */
export async function stageDirectory(path: string): Promise<string> {
  const staged = join(dirname(path), `.${basename(path)}.partial`);
  try {
    await rm(staged, { recursive: true, force: true });
    await makeFolder(staged);
  } catch (cause) {
    throw explainWriteFailure(path, cause);
  }
  return staged;
}

/** Puts a prepared folder in the place of `path`; a folder that stood there before is replaced as a whole. */
export async function publishDirectory(staged: string, path: string): Promise<void> {
  const former = join(dirname(path), `.${basename(path)}.former`);
  await rm(former, { recursive: true, force: true });
  let hadFormer = true;
  await rename(path, former).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error;
    hadFormer = false;
  });
  await rename(staged, path);
  await syncDirectory(dirname(path));
  if (hadFormer) await rm(former, { recursive: true, force: true });
}
