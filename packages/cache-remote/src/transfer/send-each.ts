import PQueue from 'p-queue';
import type { BlobToSend, SendOptions } from '../stores/remote-store.ts';

/** Does something for each item, some at a time; the first failure ends it, after what had begun has ended. */
export async function forEachConcurrently<T>(
  items: Iterable<T>,
  concurrency: number,
  outer: AbortSignal | undefined,
  work: (item: T, signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const controller = new AbortController();
  const forward = () => controller.abort(outer!.reason);
  outer?.throwIfAborted();
  outer?.addEventListener('abort', forward);
  const queue = new PQueue({ concurrency });
  const failures: unknown[] = [];
  try {
    for (const item of items) {
      queue
        .add(async () => {
          if (!controller.signal.aborted) await work(item, controller.signal);
        })
        .catch((error: unknown) => {
          failures.push(error);
          controller.abort(error);
          queue.clear();
        });
    }
    await queue.onIdle();
    outer?.throwIfAborted();
    if (failures.length > 0) throw failures[0];
  } finally {
    outer?.removeEventListener('abort', forward);
  }
}

/** Sends blobs one by one, some at a time. */
export function sendEach(
  blobs: readonly BlobToSend[],
  options: SendOptions,
  send: (blob: BlobToSend, signal: AbortSignal) => Promise<void>,
): Promise<void> {
  return forEachConcurrently(blobs, options.policy.concurrency, options.signal, async (blob, signal) => {
    await send(blob, signal);
    options.onSent(blob);
  });
}
