import { isStillhouseError, StillhouseError } from '@stillhouse/errors';
import { boolean, integer, list, resolveSettings, type SettingsOf, text } from '@stillhouse/settings';
import { checkTraining, parseCaches, type SharedInputs } from '@stillhouse/student-trainer';
import { planSweep, type SweepPlan } from '../sweep/sweep-plan.ts';
import { MEASUREMENT_SETTINGS, RUN_SETTINGS, SWEEP_SETTINGS } from '../sweep/sweep-settings.ts';

const {
  temperature: _temperature,
  temperatureEnd: _temperatureEnd,
  seed: _seed,
  steps: _steps,
  epochs: _epochs,
  ...runSettings
} = RUN_SETTINGS;

const isTemperature = (value: unknown): value is number =>
  typeof value === 'number' && value > 0 && Number.isFinite(value);
const isSeed = (value: unknown): value is number => Number.isInteger(value) && (value as number) >= 0;

/** Every setting of `stillhouse tune-temperature`: those of training, and the temperatures instead of one. */
export const TUNING_SETTINGS = {
  out: text('folder for the runs and the result', undefined),
  temperatures: list(
    'temperatures to try; left out: of 1, 1.5, 2, 3, 4 and those of the cache the ones that the labels have',
    isTemperature,
    'numbers above 0, such as 1,2,4',
    undefined,
  ),
  seeds: list(
    'seeds to train each temperature with; more of them tell luck from temperature',
    isSeed,
    'whole numbers',
    [0],
  ),
  steps: integer('optimiser steps of each run', 100, { min: 1 }),
  dryRun: boolean('check all runs and say which temperatures would be tried'),
  ...MEASUREMENT_SETTINGS,
  ...runSettings,
} as const;
/** The settings of a tuning, checked. */
export type TuningSettings = SettingsOf<typeof TUNING_SETTINGS>;

const CANDIDATES = [1, 1.5, 2, 3, 4];
const NOT_OF_LABELS = ['TEMPERATURE_NOT_IN_GRID', 'TEMPERATURE_NOT_DRAWN'];

/**
 * A sweep over temperatures and seeds, all else alike.
 * @throws StillhouseError TEMPERATURES_NOT_OF_LABELS naming all that the labels do not have, TEMPERATURES_TOO_FEW,
 *   SETTING_UNUSED where no soft labels take part, SETTING_MISSING, SWEEP_DUPLICATE, and those of `checkTraining`
 */
export async function planTuning(settings: TuningSettings, shared: Required<SharedInputs>): Promise<SweepPlan> {
  refuseHardLabels(settings);
  const { temperatures: asked, seeds, dryRun: _, ...given } = settings;
  const plan = (temperatures: readonly number[]) =>
    planSweep(
      resolveSettings(SWEEP_SETTINGS, given),
      given,
      temperatures.flatMap((temperature) => seeds.map((seed) => ({ temperature, seed }))),
    );
  const candidates = asked ?? (await listCandidates(settings, shared));
  const refusals = new Map<number, StillhouseError>();
  for (const run of plan(candidates).runs) {
    const { temperature, evalEvery = 1 } = run.settings;
    if (run.settings.seed !== seeds[0]) continue;
    await checkTraining({ ...run.settings, evalEvery }, shared).catch((error: unknown) => {
      if (!NOT_OF_LABELS.some((code) => isStillhouseError(error, code))) throw error;
      refusals.set(temperature, error as StillhouseError);
    });
  }
  const [refusal] = refusals.values();
  if (asked !== undefined && refusal !== undefined) {
    const { problem, expected, remedy } = refusal.report;
    throw new StillhouseError({
      code: 'TEMPERATURES_NOT_OF_LABELS',
      where: `--temperatures ${asked.join(',')}`,
      problem,
      ...(expected === undefined ? {} : { expected }),
      got: [...refusals.keys()].join(', '),
      ...(remedy === undefined ? {} : { remedy: `For ${[...refusals.keys()][0]}: ${remedy}` }),
    });
  }
  const temperatures = candidates.filter((one) => !refusals.has(one));
  if (temperatures.length < 2) {
    throw new StillhouseError({
      code: 'TEMPERATURES_TOO_FEW',
      where: '--temperatures',
      problem: 'there is nothing to choose from',
      expected: 'at least two temperatures that the labels have',
      got: temperatures.length === 0 ? 'none' : `T = ${temperatures.join(', ')}`,
      remedy: 'Give two or more, or train on full labels, which have every temperature',
    });
  }
  return plan(temperatures);
}

function refuseHardLabels({ labels, alpha }: TuningSettings): void {
  if (labels !== 'none' && alpha > 0) return;
  throw new StillhouseError({
    code: 'SETTING_UNUSED',
    where: labels === 'none' ? '--labels none' : '--alpha 0',
    problem: 'without the KL term the temperature changes nothing',
    remedy: 'Train on soft labels with --alpha above 0',
  });
}

/** The usual ones and those at which the cache knows what is outside of its top k. */
async function listCandidates({ cache, cacheWeights }: TuningSettings, { openCache }: Required<SharedInputs>) {
  if (cache === undefined) return CANDIDATES;
  const candidates = new Set(CANDIDATES);
  for (const { location } of parseCaches(cache, cacheWeights)) {
    const opened = await openCache(location);
    await opened.close();
    const { topk, sampled } = opened.description.labels;
    for (const temperature of topk?.temperatures ?? []) candidates.add(temperature);
    if (sampled) candidates.add(sampled.temperature);
  }
  return [...candidates].sort((a, b) => a - b);
}
