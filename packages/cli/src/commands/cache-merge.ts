import { printBytes, printCount } from '@stillhouse/report';
import { list, text } from '@stillhouse/settings';
import { describeSize, mergeCache } from '@stillhouse/teacher-cache';
import { defineCommand } from '../command-line/command.ts';
import { printPairs } from '../terminal/text-table.ts';

export const cacheMerge = defineCommand({
  settings: {
    cache: text('folder of the cache: the one that the parts share, or a new one', undefined),
    parts: list(
      'folders in which parts were built, where they share none',
      (value): value is string => typeof value === 'string' && value !== '',
      'folders',
      undefined,
    ),
  },
  argument: 'cache',
  furtherArguments: 'parts',
  run: async ({ cache, parts }) => {
    const { manifest, wasMerged } = await mergeCache(cache!, parts ?? []);
    const { digest, rows, shards } = manifest;
    const sizeBytes = describeSize(manifest).totalBytes;
    return {
      result: { cache, wasMerged, cacheDigest: digest, rows: rows.stored, shards: shards.length, sizeBytes },
      summary: printPairs([
        ['cache', wasMerged ? `${cache} (was merged already)` : cache],
        ['rows', printCount(rows.stored)],
        ['shards', printCount(shards.length)],
        ['size', printBytes(sizeBytes)],
        ['digest', digest],
      ]),
    };
  },
});
