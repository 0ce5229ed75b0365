import { printBytes, printCount } from '@stillhouse/report';
import { EXTEND_SETTINGS, type ExtendResult, extendTeacherCache } from '@stillhouse/teacher-inference';
import { defineCommand } from '../command-line/command.ts';
import { recipeBeside } from '../command-line/written-recipe.ts';
import { printSampled, printTopK } from '../terminal/label-policies.ts';
import type { Progress } from '../terminal/progress.ts';
import { printPairs } from '../terminal/text-table.ts';

export const cacheExtend = defineCommand({
  settings: EXTEND_SETTINGS,
  argument: 'cache',
  run: async (settings, context) => {
    let progress: Progress | undefined;
    const result = await extendTeacherCache(settings, {
      onPlan: ({ shards, shardsDone, rowsAdded, device }) =>
        context.note(
          [
            `cache extend: ${printCount(shards)} shards get something`,
            rowsAdded === 0 ? undefined : `${printCount(rowsAdded)} rows are new`,
            shardsDone === 0 ? undefined : `${printCount(shardsDone)} shards done before`,
            device === null ? undefined : `on ${device}`,
          ]
            .filter((part) => part !== undefined)
            .join(', '),
        ),
      onProgress: ({ tokens, tokensDone, tokensPerSecond, etaSeconds, shard, shards }) => {
        progress ??= context.openProgress({ label: 'cache extend', unit: 'tokens', total: tokens });
        progress.update({
          done: Math.round(tokensDone),
          pace: { tokensPerSecond, leftMs: etaSeconds === null ? null : etaSeconds * 1000 },
          note: `shard ${shard}/${shards}`,
        });
      },
    });
    progress?.stop();
    return {
      result,
      summary: printResult(result),
      // In place the recipe beside the cache is that of the build.
      ...(settings.out === undefined ? {} : { recipeFile: recipeBeside(result.out) }),
    };
  },
});

function printResult({ out, wasComplete, rows, rowsAdded, labels, size, cacheDigest }: ExtendResult): string {
  const { topk, sampled = null, hidden } = labels;
  return printPairs([
    ['cache', wasComplete ? `${out} (had all of this already)` : out],
    ['rows', rowsAdded === 0 ? printCount(rows) : `${printCount(rows)}, ${printCount(rowsAdded)} of them new`],
    ['top-k', topk === null ? undefined : printTopK(topk)],
    ['sampled', sampled === null ? undefined : printSampled(sampled)],
    ['hidden states', hidden === null ? undefined : `layers ${hidden.layers.join(', ')} as ${hidden.dtype}`],
    ['size', printBytes(size.totalBytes)],
    ['digest', cacheDigest],
  ]);
}
