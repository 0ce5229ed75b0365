import { join } from 'node:path';
import { type FolderLock, lockFolder, makeFolder, pathExists, writeFileAtomically } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { listCheckpoints } from '../save/training-checkpoint.ts';
import { RECIPE_FILE, type Recipe, readRecipe, refuseOtherRecipe } from '../settings/recipe.ts';
import type { TrainingSettings } from '../settings/training-settings.ts';

type FolderSettings = Pick<TrainingSettings, 'resume'> & { readonly out: string };

/**
 * Opens the folder of a run for this process alone, and writes its recipe there. A folder that the run cannot begin or
 * go on in is refused and left as it is.
 * @throws StillhouseError as {@link checkFolder}, and RUN_IN_USE, DISK_FULL, NOT_WRITABLE; of the lock, RUN_LOCK_LOST
 */
export async function openRunFolder(settings: FolderSettings, recipe: Recipe): Promise<FolderLock> {
  const { out } = settings;
  await checkFolder(settings, recipe);
  await makeFolder(out);
  const lock = await lockFolder(out, '.run-lock', {
    inUseCode: 'RUN_IN_USE',
    inUse: 'another process is training in this folder',
    lostCode: 'RUN_LOCK_LOST',
    lost: 'another process has taken this run over',
  });
  try {
    // Another process may have begun and ended a run in between.
    await checkFolder(settings, recipe);
    await writeFileAtomically(join(out, RECIPE_FILE), `${JSON.stringify(recipe, null, 2)}\n`);
    return lock;
  } catch (error) {
    await lock.release();
    throw error;
  }
}

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
    return;
  }
  const isTaken =
    before !== undefined || (await listCheckpoints(out)).length > 0 || (await pathExists(join(out, 'config.json')));
  if (!isTaken) return;
  throw new StillhouseError({
    code: 'RUN_EXISTS',
    where: out,
    problem: 'the folder holds a run or a model already',
    remedy: 'Continue it with --resume, or choose another --out',
  });
}
