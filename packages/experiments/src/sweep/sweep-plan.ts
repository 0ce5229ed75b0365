import { join } from 'node:path';
import { StillhouseError } from '@stillhouse/errors';
import {
  flagOf,
  type GivenSettings,
  readRecipeFile,
  requireSetting,
  resolveSettings,
  resolveWithRecipe,
} from '@stillhouse/settings';
import { resolveStages, type Stage, type StagedSettings, type TrainingSettings } from '@stillhouse/student-trainer';
import { nameRuns } from './run-names.ts';
import { expandAxes, type Overrides } from './sweep-axes.ts';
import {
  MEASUREMENT_SETTINGS,
  type MeasurementSettings,
  RUN_SETTINGS,
  type RunSettings,
  SWEEP_SETTINGS,
  type SweepSettings,
} from './sweep-settings.ts';

/** One training run of a sweep. */
export interface SweepRun {
  readonly name: string;
  /** What it sets, beside what all runs have. */
  readonly overrides: Overrides;
  /** With its own folder as `out`; what it sets holds in every stage. */
  readonly settings: StagedSettings;
}

/** All runs of a sweep, and how their students are measured. */
export interface SweepPlan {
  /** The sweep's folder. */
  readonly out: string;
  readonly runs: readonly SweepRun[];
  readonly measurement: MeasurementSettings;
}

/** Under a sweep's folder: one folder a run. */
export const RUNS_FOLDER = 'runs';

export interface SweepRequest {
  readonly plan: SweepPlan;
  /** Resolved, for which runs this process works on. */
  readonly settings: SweepSettings;
}

/**
 * The sweep of a recipe file: training settings for all runs, those of the sweep, and under `sweep` what differs.
 * @param flags given on the command line; they go before the file
 * @throws StillhouseError RECIPE_NOT_READABLE, RECIPE_NOT_JSON, SETTING_UNKNOWN, SETTING_INVALID, SETTING_UNUSED, and
 *   those of {@link planSweep}, `expandAxes` and `resolveStages`
 */
export async function readSweep(recipePath: string, flags: GivenSettings): Promise<SweepRequest> {
  const { sweep, stages, ...shared } = await readRecipeFile(recipePath);
  const settings = resolveWithRecipe(SWEEP_SETTINGS, flags, { path: recipePath, settings: shared });
  if (sweep === undefined) {
    throw new StillhouseError({
      code: 'SWEEP_INVALID',
      where: recipePath,
      problem: 'the recipe does not say what differs between the runs',
      expected: 'a key "sweep" such as {"grid": {"temperature": [1, 2]}}',
      remedy: 'Add it, or train one student with `stillhouse train --recipe`',
    });
  }
  const axes = expandAxes(sweep, `${recipePath}, sweep`);
  const overridden = Object.keys(flags).find((key) => axes.every((run) => key in run));
  if (overridden !== undefined) {
    throw new StillhouseError({
      code: 'SETTING_UNUSED',
      where: flagOf(overridden),
      problem: 'every run of the sweep sets it otherwise',
      remedy: `Leave it out, or take ${overridden} out of "sweep" in ${recipePath}`,
    });
  }
  const stagesOf = (overrides: Overrides) =>
    resolveStages(stages, pick(RUN_SETTINGS, shared), { ...pick(RUN_SETTINGS, flags), ...overrides }, recipePath);
  const plan = planSweep(settings, { ...shared, ...flags }, axes, stages === undefined ? undefined : stagesOf);
  return { settings, plan };
}

/**
 * Names the runs and gives each its settings and folder.
 * @param given the settings that were given for all runs, without defaults
 * @param stagesOf the stages of a run that sets this, where the recipe has any
 * @throws StillhouseError SETTING_MISSING, SWEEP_DUPLICATE
 */
export function planSweep(
  settings: SweepSettings,
  given: GivenSettings,
  axes: readonly Overrides[],
  stagesOf?: (overrides: Overrides) => readonly Stage[],
): SweepPlan {
  const out = requireSetting(settings, 'out', 'DIR');
  if (settings.evalCache === undefined && settings.evalSplit === undefined) {
    throw new StillhouseError({
      code: 'SETTING_MISSING',
      where: '--eval-split',
      problem: 'there are no held-out rows to compare the students on',
      remedy: 'Give --eval-split NAME for a split of the training cache, or --eval-cache CACHE',
    });
  }
  const names = nameRuns(axes);
  const shared = pick(RUN_SETTINGS, given);
  const runs = axes.map((overrides, at) => ({
    name: names[at]!,
    overrides,
    settings: {
      ...resolveSettings(RUN_SETTINGS, { ...shared, ...overrides }),
      out: join(out, RUNS_FOLDER, names[at]!),
      resume: false,
      resumeStep: undefined,
      ...(stagesOf === undefined ? {} : { stages: stagesOf(overrides) }),
    },
  }));
  refuseDuplicates(runs);
  return { out, runs, measurement: resolveSettings(MEASUREMENT_SETTINGS, pick(MEASUREMENT_SETTINGS, settings)) };
}

function pick(table: Readonly<Record<string, unknown>>, given: GivenSettings): GivenSettings {
  return Object.fromEntries(
    Object.entries(given).filter(([key, value]) => table[key] !== undefined && value !== undefined),
  );
}

/** The same run with other settings, in all its stages. */
export function withSettings({ stages, ...run }: StagedSettings, changes: Partial<TrainingSettings>): StagedSettings {
  const changed = stages?.map(({ name, settings }) => ({ name, settings: { ...settings, ...changes } }));
  return { ...run, ...changes, ...(changed === undefined ? {} : { stages: changed }) };
}

function refuseDuplicates(runs: readonly SweepRun[]): void {
  const seen = new Map<string, SweepRun>();
  for (const run of runs) {
    const { out: _, ...settings } = run.settings;
    const text = JSON.stringify(settings);
    const twin = seen.get(text);
    seen.set(text, run);
    if (twin === undefined) continue;
    throw new StillhouseError({
      code: 'SWEEP_DUPLICATE',
      where: 'sweep',
      problem:
        'two runs have the same settings: ' +
        `${[twin, run].map(({ overrides }) => JSON.stringify(overrides)).join(' and ')}`,
      remedy: 'Take one of them out',
    });
  }
}

/** Settings that are not the same in all runs, in the order of the table; what a run leaves open is `undefined`. */
export function listDiffering(
  runs: readonly { readonly settings: Partial<RunSettings> }[],
): readonly (keyof RunSettings)[] {
  return (Object.keys(RUN_SETTINGS) as (keyof RunSettings)[]).filter(
    (key) => new Set(runs.map(({ settings }) => JSON.stringify(settings[key]))).size > 1,
  );
}
