import { open, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { FileDigest } from './digest.ts';
import { openStreamHash } from './hash-thread.ts';
import { makeFolder } from './make-folder.ts';
import { explainWriteFailure } from './write-failure.ts';

/** A file under its temporary name: nothing is seen at `path` before `commit`. */
export interface StagedFile {
  readonly path: string;
  write(bytes: Uint8Array): Promise<void>;
  /** Syncs, renames to `path`, syncs the folder. */
  commit(): Promise<FileDigest>;
  /** Removes the temporary file; harmless after `commit`. */
  abort(): Promise<void>;
}

/** The suffix of a file that is not finished; whoever finds one may delete it. */
const STAGED_SUFFIX = '.partial';

/** After so many bytes what was written starts on its way to the disk. */
const SYNC_BYTES = 8 << 20;

/**
 * Opens a staged file for writing; missing folders are made.
 * @throws StillhouseError DISK_FULL, NOT_WRITABLE (from any of its methods too)
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
  const hash = openStreamHash();
  let sizeBytes = 0;
  const handle = await guard(async () => {
    await makeFolder(dirname(path));
    return open(temporary, 'w');
  });
  let isOpen = true;
  let isCommitted = false;
  let unsyncedBytes = 0;
  let syncing: Promise<void> | undefined;
  let syncFailure: { readonly cause: unknown } | undefined;
  // The disk works while the next bytes are made, rather than all at once at the end.
  const syncBehind = (count: number) => {
    unsyncedBytes += count;
    if (unsyncedBytes < SYNC_BYTES || syncing !== undefined) return;
    unsyncedBytes = 0;
    syncing = handle
      .datasync()
      .catch((cause: unknown) => {
        syncFailure = { cause };
      })
      .finally(() => {
        syncing = undefined;
      });
  };
  const close = async () => {
    if (isOpen) {
      isOpen = false;
      await handle.close();
    }
  };
  return {
    path,
    write: (bytes) =>
      guard(async () => {
        const hashing = hash.update(bytes);
        let done = 0;
        while (done < bytes.length) {
          const { bytesWritten } = await handle.write(bytes, done, bytes.length - done);
          done += bytesWritten;
        }
        await hashing;
        sizeBytes += bytes.length;
        syncBehind(bytes.length);
      }),
    commit: () =>
      guard(async () => {
        const hashing = hash.digest();
        hashing.catch(() => {});
        await syncing;
        if (syncFailure !== undefined) throw syncFailure.cause;
        await handle.sync();
        await close();
        const sha256 = await hashing;
        await rename(temporary, path);
        await syncDirectory(dirname(path));
        isCommitted = true;
        return { sha256, sizeBytes };
      }),
    abort: async () => {
      if (isCommitted) return;
      hash.abandon();
      await close();
      await rm(temporary, { force: true });
    },
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
