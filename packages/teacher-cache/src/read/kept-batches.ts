import { describeSize, type GroupSize } from '../format/cache-size.ts';
import { hiddenGroup } from '../format/description.ts';
import type { LabelSelection } from '../format/labelled-row.ts';
import type { ManifestBody } from '../format/manifest.ts';

/**
 * Where the rows and labels of a cache take at most so many bytes, every batch that was read stays in memory. Rows that
 * are shorter than a batch, read in random order, would otherwise read the same batches again and again.
 */
const WHOLE_CACHE_BYTES = 256 << 20;
/** Of a larger one so much of what was read last. */
const LAST_BATCHES_BYTES = 64 << 20;

/** The files of shards; the output matrix and the tokenizer are read once, and kept by nobody. */
const describeBatches = (manifest: ManifestBody) =>
  describeSize(manifest).groups.filter(({ group }) => group !== 'head' && group !== 'tokenizer');

const sumBytes = (groups: readonly GroupSize[]) => groups.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);

/** How much of the batches that were read last stays in memory where a reader is told nothing else, in bytes. */
export const limitKeptBatches = (manifest: ManifestBody): number =>
  sumBytes(describeBatches(manifest)) <= WHOLE_CACHE_BYTES ? WHOLE_CACHE_BYTES : LAST_BATCHES_BYTES;

/** What such a reader comes to keep of a cache when it reads these labels of all rows, in bytes. */
export function measureKeptBatches(manifest: ManifestBody, { topk, sampled, hidden = [] }: LabelSelection): number {
  const read = new Set<string>(['rows', ...hidden.map(hiddenGroup)]);
  if (topk === true) read.add('topk');
  if (sampled === true) read.add('sampled');
  const readBytes = sumBytes(describeBatches(manifest).filter(({ group }) => read.has(group)));
  return Math.min(readBytes, limitKeptBatches(manifest));
}
