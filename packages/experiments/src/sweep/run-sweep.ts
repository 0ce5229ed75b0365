import { makeFolder } from '@stillhouse/durable-files';
import { isStillhouseError } from '@stillhouse/errors';
import { evaluateModel } from '@stillhouse/evaluation';
import { trainWatched } from '../training/train-watched.ts';
import type { CheckedRun } from './check-sweep.ts';
import { openCostMeter } from './cost-meter.ts';
import type { Measurement } from './measurements.ts';
import { lockRun, type RunFailure, type RunFiles, readRunFiles, writeRunRecord } from './run-folder.ts';
import type { RunPlace, SweepWork } from './sweep-events.ts';
import { withSettings } from './sweep-plan.ts';

/** Failures of the sweep rather than of one run. */
const STOPPING_CODES: readonly string[] = ['RUN_IN_USE', 'RUN_LOCK_LOST'];

/**
 * Trains and measures these runs one after the other. What is done already is not done again, a run that was
 * interrupted goes on from its checkpoint, and one that fails is recorded and does not keep the others.
 * @param onWritten told when a run is finished or has failed, and its files are written
 * @returns false where it was stopped
 * @throws StillhouseError RUN_IN_USE when another process works on a run
 */
export async function runSweep(
  runs: readonly CheckedRun[],
  work: SweepWork,
  onWritten: () => Promise<void>,
): Promise<boolean> {
  for (const [at, checked] of runs.entries()) {
    if (work.stopSignal.aborted) return false;
    const place = { name: checked.run.name, number: at + 1, runs: runs.length };
    const folder = checked.run.settings.out!;
    await makeFolder(folder);
    const lock = await lockRun(folder);
    try {
      const files = await readRunFiles(folder);
      const left = checked.measurements.filter((one) => !one.isDone(files));
      const why = reasonToSkip(files, left);
      if (why !== undefined) {
        work.events.onRunSkipped?.(place, why);
        continue;
      }
      work.events.onRun?.(place);
      const failure = await workOn({ checked, left, files }, work);
      await lock.requireHeld();
      if (failure === 'stopped') return false;
      await recordEnd(folder, place, failure, work);
    } finally {
      await lock.release();
    }
    await onWritten();
  }
  return true;
}

function reasonToSkip({ trained, record }: RunFiles, left: readonly Measurement[]): 'done' | 'diverged' | undefined {
  if (trained !== undefined && left.length === 0) return 'done';
  // The same steps would come to the same end.
  return record.failure?.code === 'TRAINING_DIVERGED' ? 'diverged' : undefined;
}

async function recordEnd(
  folder: string,
  place: RunPlace,
  failure: RunFailure | undefined,
  { events }: SweepWork,
): Promise<void> {
  if (failure !== undefined) events.onRunFailed?.(place, failure);
  const { record } = await readRunFiles(folder);
  await writeRunRecord(folder, { ...record, failure: failure ?? null });
}

interface OpenRun {
  readonly checked: CheckedRun;
  /** Measurements that are not done. */
  readonly left: readonly Measurement[];
  readonly files: RunFiles;
}

async function workOn({ checked, left, files }: OpenRun, work: SweepWork): Promise<RunFailure | 'stopped' | undefined> {
  try {
    if (files.trained === undefined && !(await train(checked, files, work))) return 'stopped';
    for (const one of left) await measure(one, work);
    return undefined;
  } catch (error) {
    if (work.stopSignal.aborted) return 'stopped';
    if (!(error instanceof Error) || (isStillhouseError(error) && STOPPING_CODES.includes(error.code))) throw error;
    return { code: isStillhouseError(error) ? error.code : 'DEFECT', message: error.message };
  }
}

async function measure({ settings }: Measurement, { shared, events, stopSignal }: SweepWork): Promise<void> {
  const watcher = events.watchMeasurement?.(settings.task);
  await evaluateModel(
    settings,
    {
      onProgress: (progress) => {
        // An evaluation has nothing to save: it is given up.
        stopSignal.throwIfAborted();
        watcher?.onProgress?.(progress);
      },
    },
    shared,
  );
  watcher?.onEnd?.();
}

const WITHOUT_EVALUATION = { evalCache: undefined, evalSplit: undefined, evalLimit: undefined };

/** @returns false where it was stopped */
async function train(
  { run }: CheckedRun,
  { isBegun, record }: RunFiles,
  { shared, events, stopSignal }: SweepWork,
): Promise<boolean> {
  const settings = { ...run.settings, resume: isBegun };
  const folder = settings.out!;
  const meter = openCostMeter(record, (cost) => writeRunRecord(folder, { ...cost, failure: null }));
  const watcher = events.watchTraining?.();
  try {
    const { isFinished } = await trainWatched(
      settings.evalEvery === undefined ? withSettings(settings, WITHOUT_EVALUATION) : settings,
      {
        shared,
        stopSignal,
        events: {
          ...watcher,
          onStep: (metrics, steps) => {
            watcher?.onStep?.(metrics, steps);
            meter.update();
          },
        },
      },
    );
    return isFinished;
  } finally {
    await writeRunRecord(folder, { ...(await meter.finish()), failure: null });
  }
}
