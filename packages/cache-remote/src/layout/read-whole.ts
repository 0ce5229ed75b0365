import { StillhouseError } from '@stillhouse/errors';
import type { RemoteReader } from '../stores/remote-store.ts';
import {
  createPatience,
  PassingFault,
  type TransferPolicy,
  untilAborted,
  withStallGuard,
} from '../transfer/transfer-policy.ts';

/**
 * A small file of a remote in memory.
 * @returns undefined if there is none
 * @throws StillhouseError REMOTE_INVALID above `limitBytes`, REMOTE_TRANSFER_FAILED
 */
export async function readWhole(
  store: RemoteReader,
  key: string,
  limitBytes: number,
  { policy, signal }: { readonly policy: TransferPolicy; readonly signal: AbortSignal | undefined },
): Promise<Buffer | undefined> {
  const where = `${store.where}/${key}`;
  const patience = createPatience(where, policy, signal);
  for (;;) {
    try {
      return await withStallGuard(policy, signal, async (guarded, onBytes) => {
        const body = await store.read(key, 0, guarded);
        if (body === undefined) return undefined;
        const parts: Uint8Array[] = [];
        let sizeBytes = 0;
        for await (const chunk of untilAborted(body.chunks, guarded)) {
          onBytes(chunk.length);
          parts.push(chunk);
          sizeBytes += chunk.length;
          if (sizeBytes > limitBytes) {
            throw new StillhouseError({
              code: 'REMOTE_INVALID',
              where,
              problem: 'the file is larger than such a file can be',
              expected: `at most ${limitBytes} bytes`,
            });
          }
        }
        if (body.totalBytes !== undefined && body.totalBytes !== sizeBytes) {
          throw new PassingFault(`it ended after ${sizeBytes} of ${body.totalBytes} bytes`);
        }
        return Buffer.concat(parts);
      });
    } catch (fault) {
      await patience.wait(fault);
    }
  }
}
