import { stat } from 'node:fs/promises';
import { StillhouseError } from '@stillhouse/errors';
import type { ListedFile } from '../format/manifest.ts';

/** What changes when a file's content does. The time of the last change of status cannot be set back by a program. */
export interface FileStamp {
  readonly sizeBytes: number;
  readonly mtimeMs: number;
  readonly ctimeMs: number;
}

/** @returns undefined if there is no file */
export async function readStamp(path: string): Promise<FileStamp | undefined> {
  try {
    const { size, mtimeMs, ctimeMs } = await stat(path);
    return { sizeBytes: size, mtimeMs, ctimeMs };
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined;
    throw error;
  }
}

export const sameStamp = (a: FileStamp | undefined, b: FileStamp | undefined): boolean =>
  a !== undefined &&
  b !== undefined &&
  a.sizeBytes === b.sizeBytes &&
  a.mtimeMs === b.mtimeMs &&
  a.ctimeMs === b.ctimeMs;

/**
 * The stamp of a listed file that is there with its size.
 * @throws StillhouseError CACHE_FILE_MISSING, CACHE_FILE_DAMAGED
 */
export async function requireStamp(path: string, file: ListedFile, remedy: string): Promise<FileStamp> {
  const stamp = await readStamp(path);
  if (stamp?.sizeBytes === file.sizeBytes) return stamp;
  throw new StillhouseError({
    code: stamp === undefined ? 'CACHE_FILE_MISSING' : 'CACHE_FILE_DAMAGED',
    where: path,
    problem: stamp === undefined ? 'the file is missing' : 'the file does not have its length',
    expected: `${file.sizeBytes} bytes`,
    ...(stamp === undefined ? {} : { got: `${stamp.sizeBytes} bytes` }),
    remedy,
  });
}
