import type { FileHandle } from 'node:fs/promises';
import { type FileDigest, sha256Of } from './digest.ts';
import { openThreadFile, type ThreadFile } from './file-threads.ts';

/** A file that grows at its end. One call at a time. */
export interface GrowingFile {
  /** The bytes may change once this settles; that they cannot be written may come out with a later call. */
  append(bytes: Uint8Array): Promise<void>;
  /** Writes what is left. */
  finish(): Promise<FileDigest>;
  /** Instead of `finish`, or after it: nobody but the caller uses the file any more. */
  abandon(): Promise<void>;
}

/**
 * Bytes are gathered in so much memory, which is hashed on a thread while it is written; a shorter file never has one.
 */
export const SLOT_BYTES = 1 << 21;

/** So much of a file waits to be written and hashed; then `append` waits too. */
const WAITING_SLOTS = 4;

/** Memory that threads share; as much is kept as was ever in use at once. */
const freeSlots: Uint8Array[] = [];

const takeSlot = () => freeSlots.pop() ?? new Uint8Array(new SharedArrayBuffer(SLOT_BYTES));

/** Appends to an empty file that is open for writing; memory does not grow with the file. */
export function appendTo(handle: FileHandle): GrowingFile {
  let slot: Uint8Array | undefined;
  let filledBytes = 0;
  let handedBytes = 0;
  let hash: ThreadFile | undefined;
  let written: Promise<void> = Promise.resolve();
  const behind = openWorkBehind();

  const handOver = (full: Uint8Array) => {
    const [bytes, position] = [full.subarray(0, filledBytes), handedBytes];
    hash ??= openThreadFile();
    written = written.then(() => writeWhole(handle, bytes, position));
    behind.start([hash.hash(bytes), written], () => freeSlots.push(full));
    handedBytes += filledBytes;
    filledBytes = 0;
    slot = undefined;
  };
  return {
    append: async (bytes) => {
      for (let at = 0; at < bytes.length; ) {
        behind.requireSound();
        await behind.waitFor(WAITING_SLOTS);
        slot ??= takeSlot();
        const piece = bytes.subarray(at, at + SLOT_BYTES - filledBytes);
        slot.set(piece, filledBytes);
        filledBytes += piece.length;
        at += piece.length;
        if (filledBytes === SLOT_BYTES) handOver(slot);
      }
    },
    finish: async () => {
      if (hash === undefined) {
        const bytes = slot?.subarray(0, filledBytes) ?? new Uint8Array();
        await writeWhole(handle, bytes, 0);
        return { sha256: sha256Of(bytes), sizeBytes: bytes.length };
      }
      if (slot !== undefined) handOver(slot);
      await behind.settle();
      behind.requireSound();
      return { sha256: await hash.digest(), sizeBytes: handedBytes };
    },
    abandon: async () => {
      await behind.settle();
      hash?.abandon();
      if (slot !== undefined) freeSlots.push(slot);
      slot = undefined;
    },
  };
}

/** What goes on while the caller goes on; of what fails the first failure stays. */
function openWorkBehind() {
  const running = new Set<Promise<void>>();
  let failure: { readonly cause: unknown } | undefined;
  return {
    start: (works: readonly Promise<void>[], end: () => void) => {
      const done = Promise.allSettled(works).then((results) => {
        for (const result of results) if (result.status === 'rejected') failure ??= { cause: result.reason };
        end();
        running.delete(done);
      });
      running.add(done);
    },
    /** Until fewer than so many go on. */
    waitFor: async (count: number) => {
      if (running.size >= count) await Promise.race(running);
    },
    settle: async () => {
      await Promise.all(running);
    },
    requireSound: () => {
      if (failure !== undefined) throw failure.cause;
    },
  };
}

async function writeWhole(handle: FileHandle, bytes: Uint8Array, start: number): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const { bytesWritten } = await handle.write(bytes, done, bytes.length - done, start + done);
    done += bytesWritten;
  }
}
