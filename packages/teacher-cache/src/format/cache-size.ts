import { ENTRY_BYTES, ODDS_BYTES } from '../codecs/logprob-codes.ts';
import { matrixElementBytes } from '../codecs/output-matrix.ts';
import { idBytes } from '../codecs/topk-packing.ts';
import { type CacheDescription, type CacheGroup, GROUP_CHANNELS, hiddenGroup, shardGroups } from './description.ts';
import { largestTopKCount, type SampledPolicy, type TopKPolicy } from './label-policy.ts';
import { listFiles, type ManifestBody, type MatrixDtype } from './manifest.ts';

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
export function describeSize(manifest: ManifestBody): CacheSize {
  const sizes = new Map<CacheGroup, number>();
  for (const { group, file } of listFiles(manifest)) sizes.set(group, (sizes.get(group) ?? 0) + file.sizeBytes);
  const sum = (key: 'tokenCount' | 'positionCount') => manifest.shards.reduce((total, shard) => total + shard[key], 0);
  return makeSize(sizes, sum('tokenCount'), sum('positionCount'));
}

/** Row id, offsets and a share of the batch header; measured on rows with ids of about 20 bytes. */
const ROW_OVERHEAD_BYTES = 64;
/** Heads of the byte planes of a row: some twenty of up to four bytes. */
const PLANES_OVERHEAD_BYTES = 80;

/** What the states of one layer take at so many positions; a codebook has two matrices of at most full rank. */
function hiddenBytes(
  { dtype, codedBytes }: NonNullable<CacheDescription['labels']['hidden']>,
  hiddenSize: number,
  positions: number,
): number {
  switch (dtype) {
    case 'int8':
      return positions * (hiddenSize + 4) + 4 * hiddenSize;
    case 'int8-groups':
      return positions * hiddenSize * (1 + 2 / GROUP_CHANNELS);
    case 'float16':
      return positions * hiddenSize * 2;
    case 'float32':
      return positions * hiddenSize * 4;
    case 'coded':
      return positions * codedBytes! + 8 * hiddenSize ** 2;
  }
}

/** The most that top-k labels take at a position; packed ones as if zstd found nothing to do. */
function topKBytes(policy: TopKPolicy, vocabSize: number): number {
  const { temperatures, packing, logprobDtype = 'float32' } = policy;
  const entries = largestTopKCount(policy, vocabSize);
  // Plain, an entry is 4 + 4 bytes and each of two lists has an offset; packed, there are a count and the log odds.
  const entryBytes = packing === 'zstd' ? idBytes(vocabSize) + ENTRY_BYTES[logprobDtype] : 8;
  const ownBytes = packing === 'zstd' ? 2 + ODDS_BYTES[logprobDtype] : 8;
  return entries * entryBytes + temperatures.length * 4 + ownBytes;
}

/** The most that sampled labels take at a position: every draw another id. */
const sampledBytes = ({ draws }: SampledPolicy, vocabSize: number) =>
  2 + Math.min(draws, vocabSize) * (idBytes(vocabSize) + 2);

/**
 * What a cache of a description will take, before it is built: exact within some percent for plain top-k of k entries
 * and hidden states, at most so much for labels that are packed, ragged or sampled. Tokenizer files are left out.
 */
export function estimateCacheSize(
  description: CacheDescription,
  counts: {
    readonly rows: number;
    readonly tokens: number;
    readonly positions: number;
    /** What the teacher stores its output matrix as. Default bfloat16. */
    readonly matrixDtype?: MatrixDtype;
    /** What groups took at a position where it was measured, on a pilot of the same rows; counted instead. */
    readonly measured?: ReadonlyMap<CacheGroup, number>;
  },
): CacheSize {
  const { teacher, labels } = description;
  const { rows, tokens, positions } = counts;
  const sizes = new Map<CacheGroup, number>();
  for (const group of shardGroups(description)) sizes.set(group, rows * ROW_OVERHEAD_BYTES);
  const add = (group: CacheGroup, bytes: number) => sizes.set(group, (sizes.get(group) ?? 0) + bytes);
  // An id is 4 bytes, its mask 1; an offset into a list is 4.
  add('rows', tokens * 5);
  if (labels.topk !== null) {
    const packedBytes = labels.topk.packing === 'zstd' ? rows * PLANES_OVERHEAD_BYTES : 0;
    add('topk', positions * topKBytes(labels.topk, teacher!.vocabSize) + packedBytes);
  }
  if ((labels.sampled ?? null) !== null) {
    const bytes = positions * sampledBytes(labels.sampled!, teacher!.vocabSize);
    add('sampled', bytes + rows * PLANES_OVERHEAD_BYTES);
  }
  for (const layer of labels.hidden?.layers ?? []) {
    add(hiddenGroup(layer), hiddenBytes(labels.hidden!, teacher!.hiddenSize!, positions));
  }
  if (labels.head) {
    add('head', teacher!.vocabSize * teacher!.hiddenSize! * matrixElementBytes(counts.matrixDtype ?? 'bfloat16'));
  }
  for (const [group, bytes] of counts.measured ?? []) if (sizes.has(group)) sizes.set(group, positions * bytes);
  return makeSize(sizes, tokens, positions);
}
