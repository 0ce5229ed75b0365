import {
  DISTILLKIT_PRESETS,
  type DistillKitConfig,
  type ExportResult,
  exportAxolotl,
  exportDatasets,
  exportDistillKit,
  exportParquet,
  exportTrl,
  readDistillKitConfig,
} from '@stillhouse/cache-exchange';
import { printBytes, printCount } from '@stillhouse/report';
import { choice, number, requireSetting, type SettingsOf, text } from '@stillhouse/settings';
import { largestTopKCount, openCache, type TeacherCache } from '@stillhouse/teacher-cache';
import { defineCommand } from '../command-line/command.ts';
import { refuseUnused } from '../command-line/unused-settings.ts';
import { recipeBeside } from '../command-line/written-recipe.ts';
import { printPairs } from '../terminal/text-table.ts';

const settings = {
  cache: text('folder of the cache', undefined),
  format: choice('format to write', ['parquet', 'distillkit', 'axolotl', 'trl', 'datasets'], 'parquet'),
  out: text('folder for the files', undefined),
  layout: choice('parquet: lists, or arrays as bytes for old readers [nested]', ['nested', 'packed'], undefined),
  compression: text(
    'distillkit: exact, recommended, budget (from its README) or a compression_config.yaml [exact]',
    undefined,
  ),
  alignment: choice(
    'axolotl: labels at their position (0.10 and later) or at the token they predict [position]',
    ['position', 'token'],
    undefined,
  ),
  kdTemperature: number('axolotl: temperature of the logprobs in the rows [1]', undefined, { above: 0 }),
  normalise: choice(
    'axolotl: logprobs over the stored ids or over the whole vocabulary [topk]',
    ['topk', 'none'],
    undefined,
  ),
};

/** Which format a setting belongs to. */
const OWNERS = {
  layout: 'parquet',
  compression: 'distillkit',
  alignment: 'axolotl',
  kdTemperature: 'axolotl',
  normalise: 'axolotl',
} as const;

type ExportSettings = SettingsOf<typeof settings>;

export const cacheExport = defineCommand({
  settings,
  argument: 'cache',
  run: async (given) => {
    const out = requireSetting(given, 'out', 'DIR');
    refuseUnused(given, OWNERS, given.format);
    const cache = await openCache(given.cache!);
    try {
      const { files, rowCount, sizeBytes } = await write(cache, out, given);
      return {
        result: { out, format: given.format, cacheDigest: cache.digest, files, rowCount, sizeBytes },
        summary: printPairs([
          ['out', out],
          ['files', `${printCount(files.length)} (${printBytes(sizeBytes)})`],
          ['rows', printCount(rowCount)],
        ]),
        recipeFile: recipeBeside(out),
      };
    } finally {
      await cache.close();
    }
  },
});

async function write(cache: TeacherCache, out: string, given: ExportSettings): Promise<ExportResult> {
  switch (given.format) {
    case 'parquet':
      return exportParquet(cache, out, { layout: given.layout ?? 'nested' });
    case 'distillkit':
      return exportDistillKit(cache, out, await chooseCompression(cache, given.compression ?? 'exact'));
    case 'axolotl':
      return exportAxolotl(cache, out, {
        alignment: given.alignment ?? 'position',
        temperature: given.kdTemperature ?? 1,
        normalise: given.normalise ?? 'topk',
      });
    case 'trl':
      return exportTrl(cache, out);
    case 'datasets':
      return exportDatasets(cache, out);
  }
}

async function chooseCompression({ description }: TeacherCache, name: string): Promise<DistillKitConfig> {
  const vocabSize = description.teacher?.vocabSize ?? 2;
  const { topk } = description.labels;
  switch (name) {
    case 'exact':
      return DISTILLKIT_PRESETS.exact(vocabSize, topk === null ? 1 : largestTopKCount(topk, vocabSize));
    case 'recommended':
    case 'budget':
      return DISTILLKIT_PRESETS[name](vocabSize);
    default:
      return readDistillKitConfig(name);
  }
}
