import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { StillhouseError } from '@stillhouse/errors';
import { SETTINGS_FREE_ON_RESUME, TRAINING_SETTINGS, type TrainingSettings } from './training-settings.ts';

/** The resolved settings of a run, written beside its output. */
export const RECIPE_FILE = 'recipe.json';

export type Recipe = Readonly<Record<string, unknown>>;

/** The recipe of the run in `out`, or `undefined` when there is none. */
export async function readRecipe(out: string): Promise<Recipe | undefined> {
  const text = await readFile(join(out, RECIPE_FILE), 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT' || error.code === 'ENOTDIR') return undefined;
    throw error;
  });
  return text === undefined ? undefined : (JSON.parse(text) as Recipe);
}

/**
 * A run goes on only as it was begun: another rate or another seed halfway would be neither run.
 * @param strict settings that may not differ either, though others of their kind may
 * @throws StillhouseError RECIPE_DIFFERS listing each key with both values
 */
export function refuseOtherRecipe(
  before: Recipe,
  now: TrainingSettings,
  where: string,
  strict: readonly (keyof TrainingSettings)[] = [],
): void {
  const differing = (Object.keys(TRAINING_SETTINGS) as (keyof TrainingSettings)[]).filter(
    (key) =>
      (strict.includes(key) || !SETTINGS_FREE_ON_RESUME.includes(key)) &&
      JSON.stringify(before[key]) !== JSON.stringify(now[key]),
  );
  if (differing.length === 0) return;
  const show = (key: keyof TrainingSettings) =>
    `${key}: have ${JSON.stringify(before[key])}, asked ${JSON.stringify(now[key])}`;
  throw new StillhouseError({
    code: 'RECIPE_DIFFERS',
    where,
    problem: `the run was begun with other settings (${differing.map(show).join('; ')})`,
    remedy: 'Resume with the same settings, or start a new run in another --out',
  });
}
