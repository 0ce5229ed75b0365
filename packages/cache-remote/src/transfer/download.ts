import { createHash, type Hash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { type FileHandle, open, rm } from 'node:fs/promises';
import { explainWriteFailure } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import type { ListedFile } from '@stillhouse/teacher-cache';
import { blobKey, type ReadContext } from '../layout/remote-layout.ts';
import type { RemoteReader } from '../stores/remote-store.ts';
import { createPatience, PassingFault, untilAborted, withStallGuard } from './transfer-policy.ts';

/** So much gained makes earlier failures forgotten: a line that breaks often and delivers in between is of use. */
const PROGRESS_BYTES = 1 << 20;

/** The content of a file is not what the manifest says; another try may bring the right one. */
class WrongContent extends Error {
  override readonly name = 'WrongContent';
}

/**
 * Fetches the content of a listed file into `target`. What stands there already, from a try that was broken off, is hashed
 * again and continued. Never writes more than the file's size.
 * @param options.isDurable false where the content is hashed again before it is believed, so that it need not survive a
 *   power cut
 * @param onBytes told of bytes gained, and with a negative number of bytes thrown away
 * @throws StillhouseError REMOTE_FILE_MISSING, REMOTE_FILE_DAMAGED, REMOTE_TRANSFER_FAILED, DISK_FULL, NOT_WRITABLE, all
 *   naming the file
 */
export async function downloadBlob(
  store: RemoteReader,
  file: ListedFile,
  target: string,
  { policy, signal }: ReadContext,
  onBytes: (count: number) => void,
  { isDurable = true }: { readonly isDurable?: boolean } = {},
): Promise<void> {
  const where = `${store.where}, ${file.path}`;
  const guardWrite = async <T>(work: () => Promise<T>): Promise<T> => {
    try {
      return await work();
    } catch (cause) {
      throw explainWriteFailure(target, cause);
    }
  };
  const handle = await guardWrite(() => open(target, 'a+'));
  try {
    let state = await resume(handle, target, file);
    onBytes(state.sizeBytes);
    const startAnew = async () => {
      onBytes(-state.sizeBytes);
      await guardWrite(() => handle.truncate(0));
      state = { hash: createHash('sha256'), sizeBytes: 0 };
    };
    const append = async (chunk: Uint8Array) => {
      if (state.sizeBytes + chunk.length > file.sizeBytes) throw new WrongContent('it is longer than its size');
      await guardWrite(() => writeAll(handle, chunk));
      state.hash.update(chunk);
      state.sizeBytes += chunk.length;
      onBytes(chunk.length);
    };
    const fetchRest = () =>
      withStallGuard(policy, signal, async (guarded, tick) => {
        const body = await store.read(blobKey(file.sha256), state.sizeBytes, guarded);
        if (body === undefined) {
          throw new StillhouseError({
            code: 'REMOTE_FILE_MISSING',
            where,
            problem: 'the remote does not have the content of this file',
            expected: `sha256 ${file.sha256}`,
            remedy: 'Push the cache again from where it is whole',
          });
        }
        if (body.totalBytes !== undefined && body.totalBytes !== file.sizeBytes) {
          throw new WrongContent(`it has ${body.totalBytes} bytes instead of ${file.sizeBytes}`);
        }
        if (body.offset !== state.sizeBytes) await startAnew();
        for await (const chunk of untilAborted(body.chunks, guarded)) {
          tick(chunk.length);
          await append(chunk);
        }
        if (state.sizeBytes < file.sizeBytes) {
          throw new PassingFault(`it ended after ${state.sizeBytes} of ${file.sizeBytes} bytes`);
        }
      });
    const patience = createPatience(where, policy, signal);
    let wrong = 0;
    for (;;) {
      const before = state.sizeBytes;
      try {
        if (state.sizeBytes < file.sizeBytes) await fetchRest();
        const sha256 = state.hash.copy().digest('hex');
        if (sha256 !== file.sha256) throw new WrongContent(`it has sha256 ${sha256}`);
        if ((await handle.stat()).size !== file.sizeBytes) throw new WrongContent('another process wrote to it');
        if (isDurable) await guardWrite(() => handle.sync());
        return;
      } catch (fault) {
        if (!(fault instanceof WrongContent)) {
          if (state.sizeBytes - before >= PROGRESS_BYTES) patience.reset();
          await patience.wait(fault);
          continue;
        }
        wrong++;
        await startAnew();
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
    await handle.close();
  }
}

interface PartialFile {
  readonly hash: Hash;
  sizeBytes: number;
}

/** Hashes what is there; a file that is too long begins anew. */
async function resume(handle: FileHandle, target: string, file: ListedFile): Promise<PartialFile> {
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
