import { readFile } from 'node:fs/promises';
import { StillhouseError } from '@stillhouse/errors';
import type { SettingsOf, SettingsTable } from './fields.ts';
import { blankComments } from './json-comments.ts';
import { flagOf, resolveSettings } from './resolve.ts';

export type GivenSettings = Readonly<Record<string, unknown>>;

/**
 * The settings of a recipe file: a JSON object whose keys are setting names, with comments where one likes.
 * @throws StillhouseError RECIPE_NOT_READABLE, RECIPE_NOT_JSON
 */
export async function readRecipeFile(path: string): Promise<GivenSettings> {
  const text = await readFile(path, 'utf8').catch((cause: NodeJS.ErrnoException) => {
    throw new StillhouseError({
      code: 'RECIPE_NOT_READABLE',
      where: path,
      problem: `the recipe cannot be read (${cause.code ?? cause.message})`,
      remedy: 'Check the path given with --recipe',
      cause,
    });
  });
  const refuse = (problem: string, cause?: unknown): never => {
    throw new StillhouseError({
      code: 'RECIPE_NOT_JSON',
      where: path,
      problem,
      expected: 'a JSON object such as {"temperature": 2, "steps": 100}',
      cause,
    });
  };
  let value: unknown;
  try {
    value = JSON.parse(blankComments(text));
  } catch (cause) {
    return refuse(`not valid JSON (${(cause as Error).message})`, cause);
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return refuse('not a JSON object');
  return value as GivenSettings;
}

/**
 * The whole set of settings: flags go before the recipe, the recipe before the defaults.
 * @throws StillhouseError SETTING_UNKNOWN, SETTING_INVALID, with the recipe file or the flag in `where`
 */
export function resolveWithRecipe<const Table extends SettingsTable>(
  table: Table,
  flags: GivenSettings,
  recipe: { readonly path: string; readonly settings: GivenSettings } | undefined,
): SettingsOf<Table> {
  const place = (key: string) =>
    recipe === undefined || flags[key] !== undefined ? flagOf(key) : `${recipe.path}, key ${JSON.stringify(key)}`;
  // Each source is checked whole: a bad value in a file is an error even where a flag overrides it.
  if (recipe !== undefined)
    resolveSettings(table, recipe.settings, (key) => `${recipe.path}, key ${JSON.stringify(key)}`);
  return resolveSettings(table, { ...recipe?.settings, ...flags }, place);
}
