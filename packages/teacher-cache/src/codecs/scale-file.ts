import type { RecordBatch } from 'apache-arrow';
import type { CacheDescription } from '../format/description.ts';
import { encodeCodebook, readCodebook } from './codebook-file.ts';
import { type HiddenScale, isCodebook } from './hidden-scale.ts';
import { encodeChannelRms, readChannelRms } from './output-matrix.ts';

export const encodeScale = (scale: HiddenScale): Generator<RecordBatch> =>
  isCodebook(scale) ? encodeCodebook(scale) : encodeChannelRms(scale);

/** @throws StillhouseError CACHE_FILE_UNREADABLE */
export function readScale(path: string, { labels, teacher }: CacheDescription): Promise<HiddenScale> {
  const width = teacher!.hiddenSize!;
  return labels.hidden!.dtype === 'coded' ? readCodebook(path, width) : readChannelRms(path, width);
}
