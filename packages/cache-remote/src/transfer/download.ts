import { rm } from 'node:fs/promises';
import { StillhouseError } from '@stillhouse/errors';
import type { ListedFile } from '@stillhouse/teacher-cache';
import { blobKey, type ReadContext } from '../layout/remote-layout.ts';
import type { RemoteReader } from '../stores/remote-store.ts';
import { openPartialFile, type PartialFile, WrongContent } from './partial-file.ts';
import { createPatience, PassingFault, untilAborted, withStallGuard } from './transfer-policy.ts';

/** So much gained makes earlier failures forgotten: a line that breaks often and delivers in between is of use. */
const PROGRESS_BYTES = 1 << 20;

export interface DownloadOptions extends ReadContext {
  /** Told of bytes gained, and with a negative number of bytes thrown away. */
  readonly onBytes?: (count: number) => void;
  /**
   * False where the content is hashed again before it is believed, so that it need not survive a power cut. Default
   * true.
   */
  readonly isDurable?: boolean;
}

/**
 * Fetches the content of a listed file into `target`. What stands there already, from a try that was broken off, is
 * hashed again and continued. Never writes more than the file's size.
 * @throws StillhouseError REMOTE_FILE_MISSING, REMOTE_FILE_DAMAGED, REMOTE_TRANSFER_FAILED, DISK_FULL, NOT_WRITABLE,
 *   all naming the file
 */
export async function downloadBlob(
  store: RemoteReader,
  file: ListedFile,
  target: string,
  { policy, signal, onBytes = () => {}, isDurable = true }: DownloadOptions,
): Promise<void> {
  const where = `${store.where}, ${file.path}`;
  const partial = await openPartialFile(target, file, onBytes);
  try {
    const patience = createPatience(where, policy, signal);
    let wrong = 0;
    for (;;) {
      const before = partial.sizeBytes;
      try {
        if (before < file.sizeBytes) {
          await withStallGuard(policy, signal, (guarded, tick) =>
            fetchRest(store, file, partial, { signal: guarded, onChunk: tick }),
          );
        }
        await partial.requireContent();
        if (isDurable) await partial.sync();
        return;
      } catch (fault) {
        if (!(fault instanceof WrongContent)) {
          if (partial.sizeBytes - before >= PROGRESS_BYTES) patience.reset();
          await patience.wait(fault);
          continue;
        }
        wrong++;
        await partial.startAnew();
        if (wrong < policy.contentAttempts) continue;
        await rm(target, { force: true });
        throw new StillhouseError({
          code: 'REMOTE_FILE_DAMAGED',
          where,
          problem: `the content came wrong ${wrong} times, at last: ${fault.message}`,
          expected: `${file.sizeBytes} bytes with sha256 ${file.sha256}`,
          remedy: 'Push the cache again with --resend from where it is whole',
        });
      }
    }
  } finally {
    await partial.close();
  }
}

/** One try to bring what is missing. */
async function fetchRest(
  store: RemoteReader,
  file: ListedFile,
  partial: PartialFile,
  { signal, onChunk }: { readonly signal: AbortSignal; readonly onChunk: (sizeBytes: number) => void },
): Promise<void> {
  const body = await store.read(blobKey(file.sha256), partial.sizeBytes, signal);
  if (body === undefined) {
    throw new StillhouseError({
      code: 'REMOTE_FILE_MISSING',
      where: `${store.where}, ${file.path}`,
      problem: 'the remote does not have the content of this file',
      expected: `sha256 ${file.sha256}`,
      remedy: 'Push the cache again from where it is whole',
    });
  }
  if (body.totalBytes !== undefined && body.totalBytes !== file.sizeBytes) {
    throw new WrongContent(`it has ${body.totalBytes} bytes instead of ${file.sizeBytes}`);
  }
  if (body.offset !== partial.sizeBytes) await partial.startAnew();
  for await (const chunk of untilAborted(body.chunks, signal)) {
    onChunk(chunk.length);
    await partial.append(chunk);
  }
  if (partial.sizeBytes < file.sizeBytes) {
    throw new PassingFault(`it ended after ${partial.sizeBytes} of ${file.sizeBytes} bytes`);
  }
}
