import { join } from 'node:path';
import { writeReport } from '@stillhouse/report';
import {
  HELD_OUT_FILE,
  type HeldOutMetrics,
  METRICS_FILE,
  readStepLog,
  type StepMetrics,
  type TrainingStart,
} from '@stillhouse/student-trainer';
import { describeRun, type RunContent } from './describe-run.ts';

/** The page of a run, beside its metrics. */
export const RUN_PAGE_FILE = 'run.html';

const WRITE_INTERVAL_MS = 20_000;
/** Drawing takes no more than this share of the time: long runs have much to draw. */
const DRAWING_SHARE = 0.02;

export interface RunPage {
  /** The run is planned: from now on there may be something to write. */
  begin(plan: TrainingStart): void;
  /** Writes the page unless it was written a moment ago; does not wait. */
  update(): void;
  /** Writes it a last time. */
  finish(state: 'finished' | 'stopped'): Promise<void>;
}

/**
 * Keeps a page with the curves of a run, drawn from the files that the run writes.
 * @param out the run's folder
 * @param onFailure told why the page could not be written; the run goes on without it
 */
export function openRunPage(out: string, onFailure?: (error: Error) => void): RunPage {
  let plan: TrainingStart | undefined;
  let writing: Promise<void> | undefined;
  let nextAt = 0;
  const write = async (state: RunContent['state']) => {
    const startedAt = performance.now();
    try {
      if (plan !== undefined) await writePage(out, plan, state);
    } catch (error) {
      onFailure?.(error as Error);
    } finally {
      const now = performance.now();
      nextAt = now + Math.max(WRITE_INTERVAL_MS, (now - startedAt) / DRAWING_SHARE);
    }
  };
  return {
    begin(planned) {
      plan = planned;
    },
    update() {
      if (writing !== undefined || performance.now() < nextAt) return;
      writing = write('running').finally(() => {
        writing = undefined;
      });
    },
    async finish(state) {
      await writing;
      await write(state);
    },
  };
}

async function writePage(out: string, plan: TrainingStart, state: RunContent['state']): Promise<void> {
  const [steps, heldOut] = await Promise.all([
    readStepLog<StepMetrics>(out, METRICS_FILE),
    readStepLog<HeldOutMetrics>(out, HELD_OUT_FILE),
  ]);
  if (steps.length === 0) return;
  const report = describeRun({ out, plan, steps, heldOut, state });
  await writeReport({ ...report, ...(state === 'running' ? { refreshSeconds: 30 } : {}) }, join(out, RUN_PAGE_FILE));
}
