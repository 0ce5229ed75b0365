import { describeSize } from './cache-size.ts';
import { hiddenGroup } from './description.ts';
import type { LabelSelection } from './labelled-row.ts';
import type { ManifestBody } from './manifest.ts';

/**
 * Of a cache of at most so many bytes every batch that was read stays in memory. Rows that are shorter than a batch, read
 * in random order, would otherwise read the same batches again and again.
 */
const WHOLE_CACHE_BYTES = 256 << 20;
/** Of a larger one so much of what was read last. */
const LAST_BATCHES_BYTES = 64 << 20;

/** How much of the batches that were read last stays in memory where a reader is told nothing else, in bytes. */
export const limitKeptBatches = (manifest: ManifestBody): number =>
  describeSize(manifest).totalBytes <= WHOLE_CACHE_BYTES ? WHOLE_CACHE_BYTES : LAST_BATCHES_BYTES;

/** What such a reader comes to keep of a cache when it reads these labels of all rows, in bytes. */
export function measureKeptBatches(manifest: ManifestBody, { topk, sampled, hidden = [] }: LabelSelection): number {
  const read = new Set<string>(['rows', ...hidden.map(hiddenGroup)]);
  if (topk === true) read.add('topk');
  if (sampled === true) read.add('sampled');
  const readBytes = describeSize(manifest)
    .groups.filter(({ group }) => read.has(group))
    .reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  return Math.min(readBytes, limitKeptBatches(manifest));
}
