import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';

/**
 * How bytes go to the disk.
 * - `buffered`: through the page cache of the system, where who reads them next finds them
 * - `direct`: past it, by the disk from our memory, where system and file system offer that (O_DIRECT of Linux), and
 *   `buffered` elsewhere: less processor time, and what others keep in the page cache stays there
 */
export type WritePath = 'buffered' | 'direct';

/** Pieces of a file, written one after the other from its beginning. */
export interface PieceWriter {
  /** The piece must stay as it is until this settles; calls need not wait for each other. */
  write(piece: Uint8Array): Promise<void>;
  /** Once nothing is written any more; the handle stays open. @throws what the last writes failed with */
  end(): Promise<void>;
}

/** What direct writing wants sizes, positions and addresses to be multiples of; disks with larger blocks are unknown. */
const BLOCK_BYTES = 4096;

/** Several at a time: each write waits for the disk once. */
const PIECES_AT_ONCE = 2;

/** After so many buffered bytes what was written starts on its way to the disk. */
const SYNC_BYTES = 8 << 20;

interface Waiting {
  readonly piece: Uint8Array;
  resolve(): void;
  reject(cause: unknown): void;
}

/**
 * Writes to a file that is open for writing and empty.
 * @param path where the file is now
 */
export function openPieceWriter(handle: FileHandle, path: string, way: WritePath): PieceWriter {
  const queue: Waiting[] = [];
  let position = 0;
  let isRunning = false;
  let running: Promise<void> | undefined;
  let failure: { readonly cause: unknown } | undefined;
  let direct: FileHandle | undefined;
  let mayBeDirect = way === 'direct' && (constants.O_DIRECT as number | undefined) !== undefined;

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

  /** Whether the file system has taken the pieces that way; it may refuse when the file is opened or when it is written. */
  const writeDirectly = async (pieces: readonly Uint8Array[]): Promise<boolean> => {
    try {
      direct ??= await open(path, constants.O_WRONLY | constants.O_DIRECT);
      await writeWhole(direct, pieces, position);
      return true;
    } catch (error) {
      if (!isRefusal(error)) throw error;
      mayBeDirect = false;
      return false;
    }
  };
  const put = async (pieces: readonly Uint8Array[], sizeBytes: number) => {
    const isWholeBlocks = sizeBytes % BLOCK_BYTES === 0;
    if (mayBeDirect && isWholeBlocks && (await writeDirectly(pieces))) return;
    await writeWhole(handle, pieces, position);
    syncBehind(sizeBytes);
  };
  const run = async () => {
    isRunning = true;
    while (queue.length > 0) {
      // Only the end of a file is no whole number of blocks; it goes alone, so that the others may go directly.
      const ragged = queue.findIndex(({ piece }) => piece.length % BLOCK_BYTES !== 0);
      const batch = queue.splice(0, ragged < 0 ? PIECES_AT_ONCE : Math.min(Math.max(1, ragged), PIECES_AT_ONCE));
      try {
        if (failure !== undefined) throw failure.cause;
        const sizeBytes = batch.reduce((sum, { piece }) => sum + piece.length, 0);
        await put(
          batch.map(({ piece }) => piece),
          sizeBytes,
        );
        position += sizeBytes;
        for (const { resolve } of batch) resolve();
      } catch (cause) {
        failure ??= { cause };
        for (const { reject } of batch) reject(cause);
      }
    }
    isRunning = false;
  };

  return {
    write: (piece) =>
      new Promise((resolve, reject) => {
        queue.push({ piece, resolve, reject });
        if (!isRunning) running = run();
      }),
    end: async () => {
      await running;
      await syncing;
      await direct?.close();
      direct = undefined;
      if (failure !== undefined) throw failure.cause;
    },
  };
}

/** Not a failure of the disk: this file system, or this memory, is not for direct writing. */
const isRefusal = (error: unknown): boolean =>
  ['EINVAL', 'ENOTSUP', 'EOPNOTSUPP'].includes((error as NodeJS.ErrnoException).code ?? '');

async function writeWhole(handle: FileHandle, pieces: readonly Uint8Array[], start: number): Promise<void> {
  let position = start;
  for (let rest = pieces; rest.length > 0; ) {
    const { bytesWritten } = await handle.writev(rest, position);
    position += bytesWritten;
    rest = dropBytes(rest, bytesWritten);
  }
}

/** What is left of pieces without their first bytes. */
export function dropBytes(pieces: readonly Uint8Array[], count: number): readonly Uint8Array[] {
  let dropped = count;
  let whole = 0;
  while (whole < pieces.length && dropped >= pieces[whole]!.length) {
    dropped -= pieces[whole]!.length;
    whole += 1;
  }
  return pieces.slice(whole).map((piece, i) => (i === 0 ? piece.subarray(dropped) : piece));
}
