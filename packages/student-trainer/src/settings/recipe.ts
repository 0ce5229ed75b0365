import { join } from 'node:path';
import { readTextIfThere } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { RUN_SETTINGS } from './stage-settings.ts';
import { SETTINGS_FREE_ON_RESUME, TRAINING_SETTINGS, type TrainingSettings } from './training-settings.ts';

/** The resolved settings of a run, written beside its output. */
export const RECIPE_FILE = 'recipe.json';

export type Recipe = Readonly<Record<string, unknown>>;

/** The recipe of the run in `out`, or `undefined` when there is none. */
export async function readRecipe(out: string): Promise<Recipe | undefined> {
  const text = await readTextIfThere(join(out, RECIPE_FILE));
  return text === undefined ? undefined : (JSON.parse(text) as Recipe);
}

/** What makes a run again from its beginning: how it was continued is no part of it. */
export function makeRecipe(run: TrainingSettings, stages: readonly NamedSettings[]): Recipe {
  const [only] = stages;
  if (only!.name === undefined) {
    const { resume: _, resumeStep: __, ...recipe } = only!.settings;
    return recipe;
  }
  const ofRun: readonly string[] = RUN_SETTINGS;
  const pick = (settings: TrainingSettings, isOfRun: boolean) =>
    Object.fromEntries(
      Object.entries(settings).filter(
        ([key]) => ofRun.includes(key) === isOfRun && key !== 'resume' && key !== 'resumeStep',
      ),
    );
  return { ...pick(run, true), stages: stages.map(({ name, settings }) => ({ name, ...pick(settings, false) })) };
}

interface NamedSettings {
  readonly name: string | undefined;
  readonly settings: TrainingSettings;
}

/**
 * A run goes on only as it was begun: another rate or another seed halfway would be neither run.
 * @param strict settings that may not differ either, though others of their kind may
 * @throws StillhouseError RECIPE_DIFFERS listing each key with both values
 */
export function refuseOtherRecipe(
  before: Recipe,
  now: Recipe,
  where: string,
  strict: readonly (keyof TrainingSettings)[] = [],
): void {
  const differing = listDifferences(before, now, strict);
  if (differing.length === 0) return;
  throw new StillhouseError({
    code: 'RECIPE_DIFFERS',
    where,
    problem: `the run was begun with other settings (${differing.join('; ')})`,
    remedy: 'Resume with the same settings, or start a new run in another --out',
  });
}

/** The settings that differ and may not, each with both values; of stages too, where their names are the same. */
function listDifferences(before: Recipe, now: Recipe, strict: readonly (keyof TrainingSettings)[]): readonly string[] {
  const show = (key: string, have: unknown, asked: unknown) =>
    `${key}: have ${JSON.stringify(have)}, asked ${JSON.stringify(asked)}`;
  const own = (Object.keys(TRAINING_SETTINGS) as (keyof TrainingSettings)[])
    .filter((key) => strict.includes(key) || !SETTINGS_FREE_ON_RESUME.includes(key))
    .filter((key) => JSON.stringify(before[key]) !== JSON.stringify(now[key]))
    .map((key) => show(key, before[key], now[key]));
  const stagesOf = ({ stages }: Recipe) => (stages ?? []) as readonly (Recipe & { readonly name: string })[];
  const [had, asked] = [stagesOf(before), stagesOf(now)];
  const names = [had, asked].map((stages) => stages.map(({ name }) => name));
  if (JSON.stringify(names[0]) !== JSON.stringify(names[1])) return [show('stages', names[0], names[1]), ...own];
  const ofStages = asked.flatMap((stage, i) =>
    listDifferences(had[i]!, stage, []).map((difference) => `stage ${stage.name}, ${difference}`),
  );
  return [...own, ...ofStages];
}
