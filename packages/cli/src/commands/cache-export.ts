import { exportParquet } from '@stillhouse/cache-exchange';
import { choice, requireSetting, text } from '@stillhouse/settings';
import { openCache } from '@stillhouse/teacher-cache';
import { defineCommand } from '../command.ts';
import { printBytes, printCount, printPairs } from '../quantities.ts';
import { recipeBeside } from '../recipe.ts';

export const cacheExport = defineCommand({
  settings: {
    cache: text('folder of the cache', undefined),
    format: choice('format to write', ['parquet'], 'parquet'),
    out: text('folder for the files', undefined),
  },
  argument: 'cache',
  run: async (settings) => {
    const out = requireSetting(settings, 'out', 'DIR');
    const cache = await openCache(settings.cache!);
    try {
      const { files, rowCount, sizeBytes } = await exportParquet(cache, out);
      return {
        result: { out, format: settings.format, cacheDigest: cache.digest, files, rowCount, sizeBytes },
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
