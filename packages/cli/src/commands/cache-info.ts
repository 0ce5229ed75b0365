import { printBytes, printCount, printSignificant } from '@stillhouse/report';
import { text } from '@stillhouse/settings';
import { type CacheManifest, describeSize, openCache, readManifest } from '@stillhouse/teacher-cache';
import { defineCommand } from '../command-line/command.ts';
import { printSampled, printTopK } from '../terminal/label-policies.ts';
import { printPairs, printTable } from '../terminal/text-table.ts';

export const cacheInfo = defineCommand({
  settings: { cache: text('folder of the cache', undefined) },
  argument: 'cache',
  run: async ({ cache: folder }) => {
    const manifest = await readManifest(folder!);
    const { digest, complete, rows, description } = manifest;
    const { totalBytes, tokenCount, positionCount, groups } = describeSize(manifest);
    const targetTokens = await countTargets(folder!, manifest, positionCount);
    const { teacher, tokenizer, labels, positions, data, maxLength } = description;
    const result = {
      cache: folder,
      digest,
      complete,
      rows,
      tokens: tokenCount,
      targetTokens,
      labelPositions: positionCount,
      positions,
      labels,
      sizeBytes: totalBytes,
      groups: groups.map(({ group, sizeBytes, bytesPerPosition }) => ({
        group,
        sizeBytes,
        bytesPerToken: bytesPerPosition,
      })),
      teacher,
      tokenizer,
      data,
      maxLength,
    };
    return { result, summary: printSummary(result) };
  },
});

/** With labels at every position the mask alone says which tokens are to be predicted. */
async function countTargets(folder: string, manifest: CacheManifest, positionCount: number): Promise<number> {
  if (manifest.description.positions === 'response') return positionCount;
  const cache = await openCache(folder, { allowIncomplete: true, groups: ['rows'], verifyOnRead: 'never' });
  try {
    let count = 0;
    for await (const { row } of cache.rows(undefined, { topk: false, hidden: [] })) {
      for (const bit of row.lossMask) count += bit;
    }
    return count;
  } finally {
    await cache.close();
  }
}

type Description = CacheManifest['description'];

interface CacheInfo extends Pick<Description, 'teacher' | 'tokenizer' | 'labels' | 'positions' | 'data'> {
  readonly digest: string;
  readonly complete: boolean;
  readonly rows: CacheManifest['rows'];
  readonly tokens: number;
  readonly targetTokens: number;
  readonly labelPositions: number;
  readonly sizeBytes: number;
  readonly groups: readonly {
    readonly group: string;
    readonly sizeBytes: number;
    readonly bytesPerToken: number | null;
  }[];
}

function printSummary(info: CacheInfo): string {
  const { rows, teacher, tokenizer, labels, groups } = info;
  const pairs = printPairs([
    ['digest', info.digest],
    ['complete', info.complete ? 'yes' : `no, ${printCount(rows.stored)} of ${printCount(rows.planned)} rows`],
    ['rows', printCount(rows.stored)],
    ['tokens', printCount(info.tokens)],
    ['target tokens', printCount(info.targetTokens)],
    ['labels at', `${printCount(info.labelPositions)} positions (${info.positions})`],
    ['top-k', labels.topk === null ? 'none' : printTopK(labels.topk)],
    ['sampled', (labels.sampled ?? null) === null ? undefined : printSampled(labels.sampled!)],
    [
      'hidden states',
      labels.hidden === null ? 'none' : `layers ${labels.hidden.layers.join(', ')} as ${labels.hidden.dtype}`,
    ],
    ['output matrix', labels.head ? 'yes' : 'no'],
    ['teacher', teacher === null ? 'none' : printTeacher(teacher)],
    [
      'tokenizer',
      tokenizer === null
        ? 'none'
        : `${printCount(tokenizer.realVocabSize)} ids, digest ${tokenizer.digest.slice(0, 16)}`,
    ],
    ['data', `${info.data.name} (${printCount(info.data.rowCount)} rows)`],
  ]);
  const perToken = (bytes: number | null) => (bytes === null ? '' : printSignificant(bytes));
  const isPerToken = (bytes: number | null): bytes is number => bytes !== null;
  const total = groups
    .map(({ bytesPerToken }) => bytesPerToken)
    .filter(isPerToken)
    .reduce((sum, bytes) => sum + bytes, 0);
  const table = printTable([
    ['group', 'size', 'bytes/token'],
    ...groups.map(({ group, sizeBytes, bytesPerToken }) => [group, printBytes(sizeBytes), perToken(bytesPerToken)]),
    ['total', printBytes(info.sizeBytes), perToken(total)],
  ]);
  return `${pairs}\n\n${table}`;
}

function printTeacher(teacher: NonNullable<Description['teacher']>) {
  const { kind, name, layerCount, hiddenSize, vocabSize } = teacher;
  const facts = [
    kind === 'weights' ? teacher.architecture : kind,
    ...(layerCount === undefined ? [] : [`${layerCount} layers`]),
    ...(hiddenSize === undefined ? [] : [`hidden ${hiddenSize}`]),
    `vocabulary ${printCount(vocabSize)}`,
  ];
  return `${name} (${facts.join(', ')})`;
}
