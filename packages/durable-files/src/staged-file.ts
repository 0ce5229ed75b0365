import { open, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { type FileDigest, sha256Of } from './digest.ts';
import { giveSlotBack, openThreadFile, SLOT_BYTES, type Slot, type ThreadFile, takeSlot } from './file-threads.ts';
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

/** After so many bytes what was written starts on its way to the disk. */
const SYNC_BYTES = 8 << 20;

/** So much of a file waits to be written and hashed; then `write` waits too. */
const WAITING_SLOTS = 8;

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
  let isOpen = true;
  let isCommitted = false;
  let failure: { readonly cause: unknown } | undefined;
  const requireSound = () => {
    if (failure !== undefined) throw failure.cause;
  };

  let unsyncedBytes = 0;
  let syncing: Promise<void> | undefined;
  // The disk works while the next bytes are made, rather than all at once at the end.
  const syncBehind = (count: number) => {
    unsyncedBytes += count;
    if (unsyncedBytes < SYNC_BYTES || syncing !== undefined || failure !== undefined) return;
    unsyncedBytes = 0;
    syncing = handle
      .datasync()
      .catch((cause: unknown) => {
        failure ??= { cause };
      })
      .finally(() => {
        syncing = undefined;
      });
  };

  // Bytes are gathered in a slot. A full one goes to the thread of the file, which a short file never has.
  let slot: Slot | undefined;
  let filledBytes = 0;
  let handedBytes = 0;
  let onThread: ThreadFile | undefined;
  const waiting = new Set<Promise<void>>();
  const handOver = (full: Slot) => {
    onThread ??= openThreadFile(handle.fd);
    const length = filledBytes;
    const writing = onThread
      .write(full, length, handedBytes)
      .then(
        () => syncBehind(length),
        (cause: unknown) => {
          failure ??= { cause };
        },
      )
      .finally(() => {
        giveSlotBack(full);
        waiting.delete(writing);
      });
    waiting.add(writing);
    handedBytes += length;
    filledBytes = 0;
    slot = undefined;
  };
  const append = async (bytes: Uint8Array) => {
    for (let at = 0; at < bytes.length; ) {
      requireSound();
      if (waiting.size >= WAITING_SLOTS) await Promise.race(waiting);
      slot ??= takeSlot();
      const piece = bytes.subarray(at, at + SLOT_BYTES - filledBytes);
      slot.bytes.set(piece, filledBytes);
      filledBytes += piece.length;
      at += piece.length;
      if (filledBytes === SLOT_BYTES) handOver(slot);
    }
  };
  /** Whether all went well or not, nobody uses the file or a slot of it any more. */
  const settle = async () => {
    await Promise.all(waiting);
    await syncing;
  };
  const close = async () => {
    if (!isOpen) return;
    isOpen = false;
    if (slot !== undefined) giveSlotBack(slot);
    slot = undefined;
    await handle.close();
  };
  const writeShort = async (bytes: Uint8Array) => {
    for (let done = 0; done < bytes.length; ) {
      const { bytesWritten } = await handle.write(bytes, done, bytes.length - done, done);
      done += bytesWritten;
    }
  };

  return {
    path,
    write: (bytes) => guard(() => append(bytes)),
    commit: () =>
      guard(async () => {
        const rest = slot?.bytes.subarray(0, filledBytes) ?? new Uint8Array();
        const sizeBytes = handedBytes + rest.length;
        let sha256: string;
        if (onThread === undefined) {
          sha256 = sha256Of(rest);
          await writeShort(rest);
        } else {
          if (slot !== undefined) handOver(slot);
          await settle();
          requireSound();
          sha256 = await onThread.digest();
        }
        await handle.sync();
        await close();
        await rename(temporary, path);
        await syncDirectory(dirname(path));
        isCommitted = true;
        return { sha256, sizeBytes };
      }),
    abort: async () => {
      if (isCommitted) return;
      await settle();
      onThread?.abandon();
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
