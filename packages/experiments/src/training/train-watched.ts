import { type SharedInputs, type StagedSettings, type TrainingEvents, trainStudent } from '@stillhouse/student-trainer';
import { openRunPage } from '../run-page/run-page.ts';
import { openEvaluator } from './held-out-evaluator.ts';

/** Who follows a training run is told of these. */
export interface WatchedEvents extends Pick<TrainingEvents, 'onPlan' | 'onStep' | 'onHeldOut'> {
  /** No more steps come; the run's page is written a last time. */
  readonly onEnd?: () => void;
  /** The run's page could not be written; the run goes on without it. */
  readonly onPageFailure?: (error: Error) => void;
}

export interface WatchedRun {
  readonly events?: WatchedEvents;
  /** Once aborted, the step under way is finished, a checkpoint saved, and the result is not `isFinished`. */
  readonly stopSignal: AbortSignal;
  readonly shared?: SharedInputs;
}

/**
 * Trains a student, evaluates it on the held-out rows that its settings ask for, and keeps the page of the run.
 * @throws StillhouseError those of `openEvaluator` and `trainStudent`
 */
export async function trainWatched(
  settings: StagedSettings,
  { events = {}, stopSignal, shared = {} }: WatchedRun,
): ReturnType<typeof trainStudent> {
  // Stages share what is evaluated; rows that are trained on are theirs.
  const evaluator = await openEvaluator(settings, shared);
  const page = openRunPage(settings.out!, events.onPageFailure);
  try {
    const result = await trainStudent(
      settings,
      {
        ...(evaluator === undefined ? {} : { evaluate: evaluator.evaluate }),
        stopSignal,
        onPlan: (plan) => {
          events.onPlan?.(plan);
          page.begin(plan);
        },
        onStep: (metrics, steps) => {
          events.onStep?.(metrics, steps);
          page.update();
        },
        onHeldOut: (metrics) => {
          events.onHeldOut?.(metrics);
          page.update();
        },
      },
      shared,
    );
    events.onEnd?.();
    await page.finish(result.isFinished ? 'finished' : 'stopped');
    return result;
  } finally {
    await evaluator?.close();
  }
}
