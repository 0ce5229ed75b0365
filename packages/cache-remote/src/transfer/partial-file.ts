import { createHash, type Hash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { explainWriteFailure } from '@stillhouse/durable-files';
import type { ListedFile } from '@stillhouse/teacher-cache';

/** The content of a file is not what the manifest says; another try may bring the right one. */
export class WrongContent extends Error {
  override readonly name = 'WrongContent';
}

/** As much of a listed file as is here, with its hash; it grows at its end. One call at a time. */
export interface PartialFile {
  readonly sizeBytes: number;
  /** Never beyond the file's size. @throws WrongContent */
  append(chunk: Uint8Array): Promise<void>;
  /** Throws away what is here. */
  startAnew(): Promise<void>;
  /** @throws WrongContent if this is not the whole content */
  requireContent(): Promise<void>;
  sync(): Promise<void>;
  close(): Promise<void>;
}

/**
 * Opens or makes a partial file; what stands there already is hashed again, and a file that is too long begins anew.
 * @param onBytes told of bytes gained, and with a negative number of bytes thrown away
 * @throws StillhouseError DISK_FULL, NOT_WRITABLE (from writing calls too)
 */
export async function openPartialFile(
  target: string,
  file: ListedFile,
  onBytes: (count: number) => void,
): Promise<PartialFile> {
  const guardWrite = async <T>(work: () => Promise<T>): Promise<T> => {
    try {
      return await work();
    } catch (cause) {
      throw explainWriteFailure(target, cause);
    }
  };
  const handle = await guardWrite(() => open(target, 'a+'));
  let state = await resume(handle, target, file).catch(async (error: unknown) => {
    await handle.close();
    throw error;
  });
  onBytes(state.sizeBytes);
  return {
    get sizeBytes() {
      return state.sizeBytes;
    },
    append: async (chunk) => {
      if (state.sizeBytes + chunk.length > file.sizeBytes) throw new WrongContent('it is longer than its size');
      await guardWrite(() => writeAll(handle, chunk));
      state.hash.update(chunk);
      state.sizeBytes += chunk.length;
      onBytes(chunk.length);
    },
    startAnew: async () => {
      onBytes(-state.sizeBytes);
      await guardWrite(() => handle.truncate(0));
      state = { hash: createHash('sha256'), sizeBytes: 0 };
    },
    requireContent: async () => {
      const sha256 = state.hash.copy().digest('hex');
      if (sha256 !== file.sha256) throw new WrongContent(`it has sha256 ${sha256}`);
      if ((await handle.stat()).size !== file.sizeBytes) throw new WrongContent('another process wrote to it');
    },
    sync: () => guardWrite(() => handle.sync()),
    close: () => handle.close(),
  };
}

interface HashedBytes {
  readonly hash: Hash;
  sizeBytes: number;
}

async function resume(handle: FileHandle, target: string, file: ListedFile): Promise<HashedBytes> {
  const hash = createHash('sha256');
  const { size } = await handle.stat();
  if (size > file.sizeBytes) {
    await handle.truncate(0);
    return { hash, sizeBytes: 0 };
  }
  let sizeBytes = 0;
  for await (const chunk of createReadStream(target, { highWaterMark: 1 << 20 })) {
    hash.update(chunk as Buffer);
    sizeBytes += (chunk as Buffer).length;
  }
  return { hash, sizeBytes };
}

async function writeAll(handle: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const { bytesWritten } = await handle.write(bytes, done, bytes.length - done);
    done += bytesWritten;
  }
}
