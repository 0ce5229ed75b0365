import { makeFolder } from '@stillhouse/durable-files';
import { isStillhouseError } from '@stillhouse/errors';
import { evaluateModel } from '@stillhouse/evaluation';
import { printCount } from '@stillhouse/report';
import { type SharedInputs, trainStudent } from '@stillhouse/student-trainer';
import type { CommandContext } from '../command.ts';
import { openEvaluator } from '../held-out-evaluator.ts';
import { openTrainingDisplay } from '../training-display.ts';
import type { CheckedRun } from './check-sweep.ts';
import { openCostMeter } from './cost-meter.ts';
import type { Measurement } from './measurements.ts';
import { lockRun, type RunFailure, type RunFiles, readRunFiles, writeRunRecord } from './run-folder.ts';
import { withSettings } from './sweep-plan.ts';

export interface SweepEvents {
  /** Told when a run is finished or has failed, and its files are written. */
  readonly onRun: () => Promise<void>;
  /** Once aborted, the step under way is finished and saved, and nothing more is begun. */
  readonly stopSignal: AbortSignal;
}

/** Failures of the sweep rather than of one run. */
const STOPPING_CODES: readonly string[] = ['RUN_IN_USE', 'RUN_LOCK_LOST'];

/**
 * Trains and measures these runs one after the other. What is done already is not done again, a run that was
 * interrupted goes on from its checkpoint, and one that fails is recorded and does not keep the others.
 * @returns false where it was stopped
 * @throws StillhouseError RUN_IN_USE when another process works on a run
 */
export async function runSweep(
  runs: readonly CheckedRun[],
  shared: Required<SharedInputs>,
  context: CommandContext,
  { onRun, stopSignal }: SweepEvents,
): Promise<boolean> {
  for (const [at, checked] of runs.entries()) {
    if (stopSignal.aborted) return false;
    const { name, settings } = checked.run;
    const folder = settings.out!;
    const label = `sweep: run ${printCount(at + 1)} of ${printCount(runs.length)}, ${name}`;
    await makeFolder(folder);
    const lock = await lockRun(folder);
    try {
      const files = await readRunFiles(folder);
      const left = checked.measurements.filter((one) => !one.isDone(files));
      if (files.trained !== undefined && left.length === 0) {
        context.note(`${label}: done before`);
        continue;
      }
      // The same steps would come to the same end.
      if (files.record.failure?.code === 'TRAINING_DIVERGED') {
        context.note(`${label}: diverged before, and would again`);
        continue;
      }
      context.note(label);
      const failure = await workOn(checked, left, files, shared, context, stopSignal);
      await lock.requireHeld();
      if (failure === 'stopped') return false;
      if (failure !== undefined)
        context.note(`${label}: failed, the others go on: ${failure.message} [${failure.code}]`);
      const { record } = await readRunFiles(folder);
      await writeRunRecord(folder, { ...record, failure: failure ?? null });
    } finally {
      await lock.release();
    }
    await onRun();
  }
  return true;
}

async function workOn(
  checked: CheckedRun,
  measurements: readonly Measurement[],
  files: RunFiles,
  shared: Required<SharedInputs>,
  context: CommandContext,
  stopSignal: AbortSignal,
): Promise<RunFailure | 'stopped' | undefined> {
  try {
    if (files.trained === undefined && !(await train(checked, files, shared, context, stopSignal))) return 'stopped';
    for (const { settings } of measurements) {
      const label = `eval ${settings.task}`;
      let progress: ReturnType<CommandContext['openProgress']> | undefined;
      await evaluateModel(
        settings,
        {
          onProgress: ({ done, total, tokens }) => {
            // An evaluation has nothing to save: it is given up.
            stopSignal.throwIfAborted();
            progress ??= context.openProgress({ label, unit: settings.task === 'kd' ? 'rows' : 'questions', total });
            progress.update({ done, pace: { tokens } });
          },
        },
        shared,
      );
      progress?.stop();
    }
    return undefined;
  } catch (error) {
    if (stopSignal.aborted) return 'stopped';
    if (!(error instanceof Error) || (isStillhouseError(error) && STOPPING_CODES.includes(error.code))) throw error;
    return { code: isStillhouseError(error) ? error.code : 'DEFECT', message: error.message };
  }
}

/** @returns false where it was stopped */
async function train(
  { run }: CheckedRun,
  { isBegun, record }: RunFiles,
  shared: Required<SharedInputs>,
  context: CommandContext,
  stopSignal: AbortSignal,
): Promise<boolean> {
  const settings = { ...run.settings, resume: isBegun };
  const folder = settings.out!;
  const withoutEvaluation = { evalCache: undefined, evalSplit: undefined, evalLimit: undefined };
  const display = openTrainingDisplay(folder, context);
  const meter = openCostMeter(record, (cost) => writeRunRecord(folder, { ...cost, failure: null }));
  const evaluator = settings.evalEvery === undefined ? undefined : await openEvaluator(settings, shared);
  try {
    const { isFinished } = await trainStudent(
      settings.evalEvery === undefined ? withSettings(settings, withoutEvaluation) : settings,
      {
        ...display.events,
        ...(evaluator === undefined ? {} : { evaluate: evaluator.evaluate }),
        stopSignal,
        onStep: (metrics, steps) => {
          display.events.onStep(metrics, steps);
          meter.update();
        },
      },
      shared,
    );
    await display.finish(isFinished ? 'finished' : 'stopped');
    return isFinished;
  } finally {
    await evaluator?.close();
    await writeRunRecord(folder, { ...(await meter.finish()), failure: null });
  }
}
