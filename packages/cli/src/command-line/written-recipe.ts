import { basename, dirname, join } from 'node:path';
import { writeFileAtomically } from '@stillhouse/durable-files';
import type { GivenSettings } from '@stillhouse/settings';

/** The text of a recipe file with these settings; settings that were left open are left out. */
export function writeRecipeFile(path: string, settings: GivenSettings): Promise<unknown> {
  return writeFileAtomically(path, `${JSON.stringify(settings, null, 2)}\n`);
}

/** Where the recipe of a folder goes whose content is fixed by its format, or of a file: `runs/cache.recipe.json`. */
export function recipeBeside(out: string): string {
  return join(dirname(out), `${basename(out, '.json')}.recipe.json`);
}
