import { StillhouseError } from '@stillhouse/errors';
import type { DecoderOnDevice } from '@stillhouse/model-runner';
import type { Engine } from '@stillhouse/runtime';
import { parseCaches } from '../data/cache-mixture.ts';
import type { TrainingSettings } from '../settings/training-settings.ts';

/** The student against the teacher on rows it does not learn from; means over target tokens, in nats. */
export interface HeldOutFigures {
  readonly rows: number;
  readonly targetTokens: number;
  /** KL(teacher‖student) at temperature 1. */
  readonly kl: number;
  readonly ce: number;
  /** Share of target tokens where both have the same most probable id. */
  readonly top1Agreement: number;
}

/** One line of held-out.jsonl: the student after `step` steps; 0 is the student as it came. */
export interface HeldOutMetrics extends HeldOutFigures {
  readonly step: number;
  /** Time of this measurement; it is not in the time of the steps. */
  readonly elapsedMs: number;
}

export const HELD_OUT_FILE = 'held-out.jsonl';

/** Measures the student where it stands: `student` is a view of the weights in training, to be read only. */
export type HeldOutEvaluator = (engine: Engine, student: DecoderOnDevice) => Promise<HeldOutFigures>;

/** Rows to evaluate on during training. */
export interface HeldOutPlan {
  readonly every: number;
  readonly cache: string;
  readonly split: string | undefined;
  readonly limit: number | undefined;
}

/**
 * What the settings say of evaluation during training; `undefined` where none is asked for.
 * @throws StillhouseError SETTING_MISSING, SETTING_UNUSED, HELD_OUT_OVERLAP where the run would train on the same rows
 */
export function resolveHeldOut(
  settings: Pick<TrainingSettings, 'evalEvery' | 'evalCache' | 'evalSplit' | 'evalLimit' | 'cache' | 'split'>,
): HeldOutPlan | undefined {
  const { evalEvery, evalCache, evalSplit, evalLimit, cache, split } = settings;
  if (evalEvery === undefined) {
    const unused = Object.entries({
      '--eval-cache': evalCache,
      '--eval-split': evalSplit,
      '--eval-limit': evalLimit,
    }).find(([, value]) => value !== undefined);
    if (unused === undefined) return undefined;
    throw new StillhouseError({
      code: 'SETTING_UNUSED',
      where: unused[0],
      problem: 'nothing is evaluated during training without --eval-every',
      remedy: 'Give --eval-every N, or leave it out',
    });
  }
  const trained = cache === undefined ? [] : parseCaches(cache, undefined).map(({ location }) => location);
  const where = evalCache ?? (trained.length === 1 ? trained[0] : undefined);
  if (where === undefined || (evalCache === undefined && evalSplit === undefined)) {
    throw new StillhouseError({
      code: 'SETTING_MISSING',
      where: '--eval-every',
      problem: 'there is nothing to evaluate on',
      remedy: 'Give --eval-split NAME for a split of the one training cache, or --eval-cache CACHE',
    });
  }
  if (trained.includes(where) && (split === undefined || evalSplit === undefined || split === evalSplit)) {
    throw new StillhouseError({
      code: 'HELD_OUT_OVERLAP',
      where: evalSplit === undefined ? `--eval-cache ${where}` : `--eval-split ${evalSplit}`,
      problem: 'the run would learn from the rows that it is evaluated on',
      expected: 'two different splits, or two caches',
      got: `training on ${split === undefined ? 'all rows' : `split ${split}`} of the same cache`,
      remedy: 'Train on another split with --split',
    });
  }
  return { every: evalEvery, cache: where, split: evalSplit, limit: evalLimit };
}
