import { setTimeout as sleep } from 'node:timers/promises';
import { StillhouseError } from '@stillhouse/errors';
import { explainCause } from './redact.ts';

/** How transfers are tried again and when one counts as stuck. */
export interface TransferPolicy {
  /** Transfers that go on at a time. */
  readonly concurrency: number;
  /** Tries in a row that may bring next to nothing. */
  readonly attempts: number;
  /** Waited before the second try; doubled for each further one, and spread at random between half and all of it. */
  readonly firstDelayMs: number;
  readonly longestDelayMs: number;
  /** A transfer that moves fewer than `windowBytes` in a window is broken off and tried again. */
  readonly windowMs: number;
  readonly windowBytes: number;
  /** How often a file whose content is wrong is fetched before it is given up. */
  readonly contentAttempts: number;
}

export const DEFAULT_POLICY: TransferPolicy = {
  concurrency: 8,
  attempts: 6,
  firstDelayMs: 500,
  longestDelayMs: 20_000,
  windowMs: 30_000,
  windowBytes: 64 << 10,
  contentAttempts: 3,
};

/** A failure that may pass: trying again is worth it. */
export class PassingFault extends Error {
  override readonly name = 'PassingFault';
  /** What the other side asked us to wait. */
  readonly retryAfterMs: number | undefined;

  constructor(message: string, options: { readonly retryAfterMs?: number | undefined; readonly cause?: unknown } = {}) {
    super(message, { cause: options.cause });
    this.retryAfterMs = options.retryAfterMs;
  }
}

/** Counts fruitless tries; says when to give up and waits in between. */
export interface Patience {
  /**
   * @throws StillhouseError REMOTE_TRANSFER_FAILED when `fault` was one too many; anything but a passing fault at once
   */
  wait(fault: unknown): Promise<void>;
  /** What was achieved makes earlier failures forgotten. */
  reset(): void;
}

export function createPatience(
  where: string,
  { attempts, firstDelayMs, longestDelayMs }: TransferPolicy,
  signal: AbortSignal | undefined,
): Patience {
  let failures = 0;
  return {
    wait: async (fault) => {
      signal?.throwIfAborted();
      if (!(fault instanceof PassingFault)) throw fault;
      failures++;
      if (failures >= attempts) {
        throw new StillhouseError({
          code: 'REMOTE_TRANSFER_FAILED',
          where,
          problem: `the transfer failed ${failures} times, at last: ${explainCause(fault)}`,
          remedy: 'Run the same command again, it goes on where it stopped',
        });
      }
      const backoffMs = Math.min(longestDelayMs, firstDelayMs * 2 ** (failures - 1)) * (0.5 + 0.5 * Math.random());
      await sleep(Math.max(backoffMs, Math.min(longestDelayMs, fault.retryAfterMs ?? 0)), undefined, {
        ...(signal === undefined ? {} : { signal }),
      });
    },
    reset: () => {
      failures = 0;
    },
  };
}

/** Does `work` until it succeeds, fails for good, or has failed too often. */
export async function withRetries<T>(
  where: string,
  policy: TransferPolicy,
  signal: AbortSignal | undefined,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const patience = createPatience(where, policy, signal);
  for (;;) {
    try {
      return await withStallGuard(policy, signal, work);
    } catch (fault) {
      await patience.wait(fault);
    }
  }
}

/**
 * Does `work` under a signal that breaks it off when it has not reported `windowBytes` within a window. Waits until
 * `work` has heeded the signal, so that nothing of it goes on beside the next try.
 * @throws PassingFault in that case
 */
export async function withStallGuard<T>(
  { windowMs, windowBytes }: TransferPolicy,
  outer: AbortSignal | undefined,
  work: (signal: AbortSignal, onBytes: (count: number) => void) => Promise<T>,
): Promise<T> {
  outer?.throwIfAborted();
  const controller = new AbortController();
  let moved = 0;
  const forward = () => controller.abort(outer!.reason);
  outer?.addEventListener('abort', forward);
  const timer = setInterval(() => {
    if (moved < windowBytes) {
      controller.abort(
        new PassingFault(`it moved ${moved} bytes in ${windowMs / 1000} s, which is too slow to wait for`),
      );
    }
    moved = 0;
  }, windowMs);
  try {
    return await work(controller.signal, (count) => {
      moved += count;
    });
  } catch (error) {
    throw controller.signal.aborted ? controller.signal.reason : error;
  } finally {
    clearInterval(timer);
    outer?.removeEventListener('abort', forward);
  }
}

/** The chunks of a stream until the signal is given, even if the stream itself does not heed it. */
export async function* untilAborted<T>(chunks: AsyncIterable<T>, signal: AbortSignal): AsyncGenerator<T> {
  const iterator = chunks[Symbol.asyncIterator]();
  let giveUp = () => {};
  const aborted = new Promise<never>((_, reject) => {
    giveUp = () => reject(signal.reason);
  });
  aborted.catch(() => {});
  signal.addEventListener('abort', giveUp);
  try {
    signal.throwIfAborted();
    for (;;) {
      const next = await Promise.race([iterator.next(), aborted]);
      if (next.done === true) return;
      yield next.value;
    }
  } finally {
    signal.removeEventListener('abort', giveUp);
    // Not awaited: a stream that hangs would hang here too.
    Promise.resolve(iterator.return?.()).catch(() => {});
  }
}
