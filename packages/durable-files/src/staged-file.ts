import { type FileHandle, open, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { FileDigest } from './digest.ts';
import { appendTo } from './growing-file.ts';
import { makeFolder } from './make-folder.ts';
import { explainWriteFailure } from './write-failure.ts';

/** A file under its temporary name: nothing is seen at `path` before `commit`. One call at a time. */
export interface StagedFile {
  readonly path: string;
  /** The bytes may change once this settles; that they cannot be written may come out with a later call. */
  write(bytes: Uint8Array): Promise<void>;
  /** Syncs, renames to `path`, syncs the folder. */
  commit(): Promise<FileDigest>;
  /** Removes the temporary file; harmless after `commit`. */
  abort(): Promise<void>;
}

/** The suffix of a file that is not finished; whoever finds one may delete it. */
const STAGED_SUFFIX = '.partial';

/**
 * Opens a staged file for writing; missing folders are made.
 * @throws StillhouseError DISK_FULL, NOT_WRITABLE, FILE_THREAD_ENDED (from any of its methods too)
 */
export async function stageFile(path: string): Promise<StagedFile> {
  const temporary = path + STAGED_SUFFIX;
  const guard = async <T>(work: () => Promise<T>): Promise<T> => {
    try {
      return await work();
    } catch (cause) {
      await rm(temporary, { force: true });
      throw explainWriteFailure(path, cause);
    }
  };
  const handle = await guard(async () => {
    await makeFolder(dirname(path));
    return open(temporary, 'w');
  });
  const file = appendTo(handle);
  const close = closeOnce(handle);
  let isCommitted = false;
  return {
    path,
    write: (bytes) => guard(() => file.append(bytes)),
    commit: () =>
      guard(async () => {
        const digest = await file.finish();
        await file.abandon();
        await handle.sync();
        await close();
        await rename(temporary, path);
        await syncDirectory(dirname(path));
        isCommitted = true;
        return digest;
      }),
    abort: async () => {
      if (isCommitted) return;
      await file.abandon();
      await close();
      await rm(temporary, { force: true });
    },
  };
}

function closeOnce(handle: FileHandle): () => Promise<void> {
  let closing: Promise<void> | undefined;
  return () => {
    closing ??= handle.close();
    return closing;
  };
}

/** Makes a rename inside `folder` survive a power cut. Windows has no such call and needs none. */
export async function syncDirectory(folder: string): Promise<void> {
  if (process.platform === 'win32') return;
  const handle = await open(folder, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/**
 * Replaces `path` by `content` in one step: a reader sees the old file or the new one, never a part.
 * @throws StillhouseError DISK_FULL, NOT_WRITABLE
 */
export async function writeFileAtomically(path: string, content: Uint8Array | string): Promise<FileDigest> {
  const staged = await stageFile(path);
  try {
    await staged.write(typeof content === 'string' ? Buffer.from(content, 'utf8') : content);
    return await staged.commit();
  } finally {
    await staged.abort();
  }
}
