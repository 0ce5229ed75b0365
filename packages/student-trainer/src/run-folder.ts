import { access } from 'node:fs/promises';
import { join } from 'node:path';
import { makeFolder, writeFileAtomically } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { RECIPE_FILE, type Recipe, readRecipe, refuseOtherRecipe } from './recipe.ts';
import { listCheckpoints } from './training-checkpoint.ts';
import type { TrainingSettings } from './training-settings.ts';

type FolderSettings = Pick<TrainingSettings, 'resume'> & { readonly out: string };

/**
 * Refuses a folder that the run cannot begin or go on in.
 * @throws StillhouseError RUN_ABSENT, RUN_EXISTS, RECIPE_DIFFERS
 */
export async function checkFolder({ out, resume }: FolderSettings, recipe: Recipe): Promise<void> {
  const before = await readRecipe(out);
  if (resume) {
    if (before === undefined) {
      throw new StillhouseError({
        code: 'RUN_ABSENT',
        where: out,
        problem: 'there is no run to resume',
        remedy: 'Start one without --resume',
      });
    }
    // A checkpoint knows its cache and its student by content; without one their paths are all there is.
    const strict = (await listCheckpoints(out)).length > 0 ? [] : (['cache', 'student'] as const);
    refuseOtherRecipe(before, recipe, join(out, RECIPE_FILE), strict);
  } else {
    const isTaken =
      before !== undefined || (await listCheckpoints(out)).length > 0 || (await exists(join(out, 'config.json')));
    if (isTaken) {
      throw new StillhouseError({
        code: 'RUN_EXISTS',
        where: out,
        problem: 'the folder holds a run or a model already',
        remedy: 'Continue it with --resume, or choose another --out',
      });
    }
  }
}

/** As {@link checkFolder}; writes the run's recipe there. */
export async function prepareFolder(settings: FolderSettings, recipe: Recipe): Promise<void> {
  await checkFolder(settings, recipe);
  const { out } = settings;
  await makeFolder(out);
  await writeFileAtomically(join(out, RECIPE_FILE), `${JSON.stringify(recipe, null, 2)}\n`);
}

const exists = (path: string) =>
  access(path).then(
    () => true,
    () => false,
  );
