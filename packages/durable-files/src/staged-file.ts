import { open, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { type FileDigest, sha256Of } from './digest.ts';
import { openThreadFile, type ThreadFile } from './file-threads.ts';
import { makeFolder } from './make-folder.ts';
import { openPieceWriter, type PieceWriter, type WritePath } from './piece-writer.ts';
import { giveSlotBack, SLOT_BYTES, type Slot, takeSlot } from './shared-slots.ts';
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

/** So much of a file waits to be written and hashed; then `write` waits too. */
const WAITING_SLOTS = 4;

/**
 * Opens a staged file for writing; missing folders are made.
 * @param way of a file of more than 2 MiB; what is shorter, and the end of a longer one, is written `buffered`
 * @throws StillhouseError DISK_FULL, NOT_WRITABLE, FILE_THREAD_ENDED (from any of its methods too)
 */
export async function stageFile(path: string, way: WritePath = 'buffered'): Promise<StagedFile> {
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

  // Bytes are gathered in a slot. A full one is hashed on a thread while it is written; a short file never has one.
  let slot: Slot | undefined;
  let filledBytes = 0;
  let handedBytes = 0;
  let long: { readonly digest: ThreadFile; readonly pieces: PieceWriter } | undefined;
  const waiting = new Set<Promise<void>>();
  const handOver = (full: Slot) => {
    long ??= { digest: openThreadFile(), pieces: openPieceWriter(handle, temporary, way) };
    const uses = [long.digest.hash(full, filledBytes), long.pieces.write(full.bytes.subarray(0, filledBytes))];
    const done = Promise.allSettled(uses).then((results) => {
      for (const result of results) if (result.status === 'rejected') failure ??= { cause: result.reason };
      giveSlotBack(full);
      waiting.delete(done);
    });
    waiting.add(done);
    handedBytes += filledBytes;
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
    await long?.pieces.end().catch((cause: unknown) => {
      failure ??= { cause };
    });
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
        if (long === undefined) {
          sha256 = sha256Of(rest);
          await writeShort(rest);
        } else {
          if (slot !== undefined) handOver(slot);
          await settle();
          requireSound();
          sha256 = await long.digest.digest();
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
      long?.digest.abandon();
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
