import { createHash } from 'node:crypto';
import { open } from 'node:fs/promises';
import { PassingFault, type TransferPolicy } from '../transfer/transfer-policy.ts';

/** Files up to this size go in one request; larger ones in parts of at least this size, which can be resumed. */
export const PART_BYTES = 8 << 20;

/** The policy for a request whose body is sent in one piece and reports nothing in between. */
export const allowTimeFor = (policy: TransferPolicy, sizeBytes: number): TransferPolicy => ({
  ...policy,
  windowMs: policy.windowMs * (1 + Math.ceil(sizeBytes / policy.windowBytes)),
});

/**
 * Where the tag of an object is the MD5 of its bytes, it must be that of ours; storage that encrypts with keys has
 * other tags.
 * @throws PassingFault
 */
export function requireSame(
  bytes: Uint8Array,
  answer: {
    readonly ETag?: string | undefined;
    readonly ServerSideEncryption?: string | undefined;
    readonly SSECustomerAlgorithm?: string | undefined;
  },
): void {
  const tag = /^"?([0-9a-f]{32})"?$/.exec(answer.ETag ?? '')?.[1];
  const isMd5 = answer.SSECustomerAlgorithm === undefined && !(answer.ServerSideEncryption ?? '').startsWith('aws:kms');
  if (tag === undefined || !isMd5) return;
  const own = createHash('md5').update(bytes).digest('hex');
  if (tag !== own) throw new PassingFault(`the storage got other bytes than were sent (MD5 ${tag} instead of ${own})`);
}

export async function readRange(path: string, start: number, end: number): Promise<Buffer> {
  const handle = await open(path, 'r');
  try {
    const bytes = Buffer.allocUnsafe(end - start);
    for (let done = 0; done < bytes.length; ) {
      const { bytesRead } = await handle.read(bytes, done, bytes.length - done, start + done);
      if (bytesRead === 0) return bytes.subarray(0, done);
      done += bytesRead;
    }
    return bytes;
  } finally {
    await handle.close();
  }
}
