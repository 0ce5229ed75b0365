import { createHash } from 'node:crypto';
import { open } from 'node:fs/promises';
import { openThreadFile } from './file-threads.ts';

export interface FileDigest {
  /** Lower-case hexadecimal sha256 of the whole file. */
  readonly sha256: string;
  readonly sizeBytes: number;
}

/** Lower-case hexadecimal. */
export const sha256Of = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

/** A shorter file is hashed where it is asked for. */
const SHORT_BYTES = 1 << 21;
/** What a thread reads at a time: others may have something for it too. */
const TURN_BYTES = 8 << 20;

/**
 * sha256 and size of a file: memory does not grow with the file.
 * @throws StillhouseError FILE_THREAD_ENDED; what the system says of a file that cannot be read
 */
export async function hashFile(path: string): Promise<FileDigest> {
  const handle = await open(path, 'r');
  try {
    if ((await handle.stat()).size <= SHORT_BYTES) {
      const bytes = await handle.readFile();
      return { sha256: sha256Of(bytes), sizeBytes: bytes.length };
    }
    const file = openThreadFile();
    try {
      let sizeBytes = 0;
      for (;;) {
        const count = await file.read(handle.fd, TURN_BYTES, sizeBytes);
        sizeBytes += count;
        if (count < TURN_BYTES) return { sha256: await file.digest(), sizeBytes };
      }
    } catch (error) {
      file.abandon();
      throw error;
    }
  } finally {
    await handle.close();
  }
}
