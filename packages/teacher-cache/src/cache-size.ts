import { type CacheDescription, type CacheGroup, hiddenGroup, shardGroups } from './description.ts';
import { type CacheManifest, listFiles, type MatrixDtype } from './manifest.ts';
import { matrixElementBytes } from './output-matrix.ts';

export interface CacheSize {
  readonly totalBytes: number;
  readonly tokenCount: number;
  readonly positionCount: number;
  readonly groups: readonly GroupSize[];
}

export interface GroupSize {
  readonly group: CacheGroup;
  readonly sizeBytes: number;
  /** Divided by all label positions; null for what does not grow with them (`head`, `tokenizer`) or without any. */
  readonly bytesPerPosition: number | null;
}

function makeSize(sizes: ReadonlyMap<CacheGroup, number>, tokenCount: number, positionCount: number): CacheSize {
  const groups = [...sizes].map(([group, sizeBytes]) => {
    const isFixed = group === 'head' || group === 'tokenizer' || positionCount === 0;
    return { group, sizeBytes, bytesPerPosition: isFixed ? null : sizeBytes / positionCount };
  });
  return { totalBytes: groups.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0), tokenCount, positionCount, groups };
}

/** What the files of a cache take, by group. */
export function describeSize(manifest: CacheManifest): CacheSize {
  const sizes = new Map<CacheGroup, number>();
  for (const { group, file } of listFiles(manifest)) sizes.set(group, (sizes.get(group) ?? 0) + file.sizeBytes);
  const sum = (key: 'tokenCount' | 'positionCount') => manifest.shards.reduce((total, shard) => total + shard[key], 0);
  return makeSize(sizes, sum('tokenCount'), sum('positionCount'));
}

/** Row id, offsets and a share of the batch header; measured on rows with ids of about 20 bytes. */
const ROW_OVERHEAD_BYTES = 64;

/**
 * What a cache of a description will take, before it is built. Top-k counts as k entries at every position, so ragged
 * labels take less; tokenizer files are left out.
 */
export function estimateCacheSize(
  description: CacheDescription,
  counts: {
    readonly rows: number;
    readonly tokens: number;
    readonly positions: number;
    /** What the teacher stores its output matrix as. Default bfloat16. */
    readonly matrixDtype?: MatrixDtype;
  },
): CacheSize {
  const { teacher, labels } = description;
  const { rows, tokens, positions } = counts;
  const sizes = new Map<CacheGroup, number>();
  for (const group of shardGroups(description)) sizes.set(group, rows * ROW_OVERHEAD_BYTES);
  const add = (group: CacheGroup, bytes: number) => sizes.set(group, (sizes.get(group) ?? 0) + bytes);
  // An id is 4 bytes, its mask 1; an offset into a list is 4.
  add('rows', tokens * 5);
  if (labels.topk !== null) add('topk', positions * (labels.topk.k * 8 + labels.topk.temperatures.length * 4 + 8));
  for (const layer of labels.hidden?.layers ?? []) {
    const { dtype } = labels.hidden!;
    const elementBytes = { int8: 1, float16: 2, float32: 4 }[dtype];
    add(hiddenGroup(layer), positions * (teacher!.hiddenSize * elementBytes + (dtype === 'int8' ? 4 : 0)));
  }
  if (labels.head) {
    add('head', teacher!.vocabSize * teacher!.hiddenSize * matrixElementBytes(counts.matrixDtype ?? 'bfloat16'));
  }
  return makeSize(sizes, tokens, positions);
}
