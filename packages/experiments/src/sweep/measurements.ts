import { join } from 'node:path';
import { isStillhouseError } from '@stillhouse/errors';
import {
  checkEvaluation,
  EVALUATION_SETTINGS,
  type EvaluationSettings,
  type SharedCaches,
} from '@stillhouse/evaluation';
import { resolveSettings } from '@stillhouse/settings';
import { resolveHeldOut } from '@stillhouse/student-trainer';
import { EXACT_MATCH_FILE, KD_FILE, type RunFiles } from './run-folder.ts';
import type { SweepRun } from './sweep-plan.ts';
import type { MeasurementSettings } from './sweep-settings.ts';

/** An evaluation that a run's student goes through once it is trained. */
export interface Measurement {
  readonly settings: EvaluationSettings;
  /** Whether a result that is there was made in this way, of these labels. */
  isDone(files: RunFiles): boolean;
}

/** Settings of an evaluation that change no figure of it but the speed. */
const WITHOUT_EFFECT: readonly string[] = ['model', 'out', 'batchSize', 'chunkPositions', 'device', 'threads'];

/**
 * The evaluations of a run, each checked with the student as it comes: held-out rows at T = 1 and at the run's own
 * temperature (of its last stage), which is left out where the held-out labels do not have it; questions where there
 * are any.
 * @throws StillhouseError those of `checkEvaluation`
 */
export async function planMeasurements(
  { settings }: SweepRun,
  { questions, questionsLimit, maxNewTokens, evalBatchSize }: MeasurementSettings,
  shared: Required<SharedCaches>,
): Promise<readonly Measurement[]> {
  const { stages, chunkPositions, device, threads, out } = settings;
  const { temperature } = stages?.at(-1)?.settings ?? settings;
  const { split } = stages?.[0]?.settings ?? settings;
  const rows = resolveHeldOut({ ...settings, split, evalEvery: 1 })!;
  const resolve = (given: Readonly<Record<string, unknown>>) =>
    resolveSettings(EVALUATION_SETTINGS, { ...given, model: out, batchSize: evalBatchSize, device, threads });
  const kd = (temperatures: readonly number[]) =>
    resolve({
      ...{ task: 'kd', cache: rows.cache, split: rows.split, limit: rows.limit, temperatures, chunkPositions },
      out: join(out!, KD_FILE),
    });
  const check = (one: EvaluationSettings) => checkEvaluation({ ...one, model: settings.student }, shared);
  const atOne = kd([1]);
  const atBoth = temperature === 1 ? atOne : kd([1, temperature]);
  const heldOut = await check(atBoth).then(
    () => atBoth,
    async (error: unknown) => {
      if (temperature === 1 || !isStillhouseError(error, 'TEMPERATURE_NOT_IN_GRID')) throw error;
      await check(atOne);
      return atOne;
    },
  );
  const heldOutCache = await shared.openCache(heldOut.cache!);
  await heldOutCache.close();
  const measurements: Measurement[] = [
    {
      settings: heldOut,
      isDone: ({ kd: found }) => found?.cacheDigest === heldOutCache.digest && isLike(found.recipe, heldOut),
    },
  ];
  if (questions === undefined) return measurements;
  const asked = resolve({
    ...{ task: 'exact-match', data: questions, maxNewTokens, out: join(out!, EXACT_MATCH_FILE) },
    ...(questionsLimit === undefined ? {} : { limit: questionsLimit }),
  });
  await check(asked);
  return [...measurements, { settings: asked, isDone: ({ exactMatch }) => isLike(exactMatch?.recipe, asked) }];
}

function isLike(made: EvaluationSettings | undefined, asked: EvaluationSettings): boolean {
  if (made === undefined) return false;
  const keys = Object.keys(EVALUATION_SETTINGS) as (keyof EvaluationSettings)[];
  return keys
    .filter((key) => !WITHOUT_EFFECT.includes(key))
    .every((key) => JSON.stringify(made[key]) === JSON.stringify(asked[key]));
}
