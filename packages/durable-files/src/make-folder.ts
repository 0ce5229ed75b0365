import { mkdir, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { StillhouseError } from '@stillhouse/errors';
import { explainWriteFailure } from './write-failure.ts';

/**
 * Makes a folder and those above it; one that is there already is fine.
 * Not `mkdir` with `recursive`: where a file system refuses new folders with "no such file", as /proc does, Node 20
 * tries for ever.
 * @throws StillhouseError FOLDER_IMPOSSIBLE, DISK_FULL, NOT_WRITABLE
 */
export async function makeFolder(path: string): Promise<void> {
  try {
    await mkdir(path);
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === 'EEXIST' && (await isFolder(path))) return;
    if (code === 'ENOENT' && dirname(path) !== path) {
      // Also where it is there by now: then somebody else made it after we had failed.
      if (!(await isFolder(dirname(path)))) await makeFolder(dirname(path));
      // Somebody else may have made it in between.
      return mkdir(path).catch(async (again: unknown) => {
        if (!(await isFolder(path))) throw refuse(path, again);
      });
    }
    throw refuse(path, cause);
  }
}

const isFolder = (path: string) =>
  stat(path).then(
    (found) => found.isDirectory(),
    () => false,
  );

function refuse(path: string, cause: unknown): unknown {
  const explained = explainWriteFailure(path, cause);
  const { code } = cause as NodeJS.ErrnoException;
  if (explained !== cause || !['ENOENT', 'EEXIST', 'ENOTDIR', 'ENAMETOOLONG', 'ELOOP'].includes(code ?? '')) {
    return explained;
  }
  return new StillhouseError({
    code: 'FOLDER_IMPOSSIBLE',
    where: path,
    problem: `a folder cannot be made there (${code})`,
    remedy: 'Choose another place',
    cause,
  });
}
