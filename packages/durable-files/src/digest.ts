import { createReadStream } from 'node:fs';
import { openStreamHash } from './hash-thread.ts';

export interface FileDigest {
  /** Lower-case hexadecimal sha256 of the whole file. */
  readonly sha256: string;
  readonly sizeBytes: number;
}

/** sha256 and size of a file, read as a stream: memory does not grow with the file. */
export async function hashFile(path: string): Promise<FileDigest> {
  const hash = openStreamHash();
  let sizeBytes = 0;
  try {
    for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) {
      await hash.update(chunk as Buffer);
      sizeBytes += (chunk as Buffer).length;
    }
  } catch (error) {
    hash.abandon();
    throw error;
  }
  return { sha256: await hash.digest(), sizeBytes };
}
