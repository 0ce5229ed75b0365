import type { RunRecord } from './run-folder.ts';

/** A killed process loses at most so much of its account. */
const WRITE_INTERVAL_MS = 10_000;

/** Counts what a run takes, on top of what it took before it was interrupted. */
export interface CostMeter {
  /** Writes the account down now and then; does not wait. */
  update(): void;
  /** @returns the whole account */
  finish(): Promise<Pick<RunRecord, 'wallMs' | 'cpuMs'>>;
}

/** @param write keeps an account; told so every ten seconds */
export function openCostMeter(
  before: Pick<RunRecord, 'wallMs' | 'cpuMs'>,
  write: (cost: Pick<RunRecord, 'wallMs' | 'cpuMs'>) => Promise<void>,
): CostMeter {
  const startedAt = performance.now();
  const cpuBefore = process.cpuUsage();
  let writtenAt = startedAt;
  let writing = Promise.resolve();
  const count = () => {
    const { user, system } = process.cpuUsage(cpuBefore);
    return { wallMs: before.wallMs + performance.now() - startedAt, cpuMs: before.cpuMs + (user + system) / 1000 };
  };
  return {
    update: () => {
      if (performance.now() - writtenAt < WRITE_INTERVAL_MS) return;
      writtenAt = performance.now();
      // The account is no reason to lose a run: the last one is written by whoever waits for it.
      writing = write(count()).catch(() => {});
    },
    finish: async () => {
      await writing;
      return count();
    },
  };
}
