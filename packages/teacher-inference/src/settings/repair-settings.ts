import { integer, list, type SettingsOf, text } from '@stillhouse/settings';
import { BUILD_SETTINGS } from './build-settings.ts';

/** Every setting of `stillhouse cache repair`. */
export const REPAIR_SETTINGS = {
  cache: text('folder of the cache', undefined),
  teacher: text('model folder of the teacher, where labels or the output matrix are damaged', undefined),
  data: list(
    'the JSON-lines files of the rows, where rows are damaged',
    (value): value is string => typeof value === 'string' && value !== '',
    'files',
    undefined,
  ),
  tokenizer: text("folder with the tokenizer; left out: the cache's own, or the teacher's", undefined),
  device: BUILD_SETTINGS.device,
  batchTokens: integer('as at the build; left out: what the cache says', undefined, { min: 1 }),
  threads: BUILD_SETTINGS.threads,
} as const;

export type RepairSettings = SettingsOf<typeof REPAIR_SETTINGS>;
