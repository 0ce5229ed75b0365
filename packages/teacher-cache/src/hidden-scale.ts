import type { RecordBatch } from 'apache-arrow';
import { encodeCodebook, readCodebook } from './codebook-file.ts';
import { type CacheDescription, type HiddenDtype, type HiddenLayer, hiddenGroup } from './description.ts';
import type { HiddenCodebook } from './hidden-codebook.ts';
import { encodeChannelRms, readChannelRms } from './output-matrix.ts';

/** What all states of a layer are decoded with: the RMS of each channel for `int8`, a codebook for `coded`. */
export type HiddenScale = Float32Array | HiddenCodebook;

export const isCodebook = (scale: HiddenScale): scale is HiddenCodebook => !(scale instanceof Float32Array);

const isScaled = (dtype: HiddenDtype) => dtype === 'int8' || dtype === 'coded';

/** The layers whose states need a scale before the first shard. */
export const scaledLayers = ({ labels: { hidden } }: CacheDescription): readonly HiddenLayer[] =>
  hidden !== null && isScaled(hidden.dtype) ? hidden.layers : [];

export const scalePath = (layer: HiddenLayer, dtype: HiddenDtype) =>
  `scales/${hiddenGroup(layer)}.${dtype === 'coded' ? 'codebook' : 'channel_rms'}.arrow`;

export const encodeScale = (scale: HiddenScale): Generator<RecordBatch> =>
  isCodebook(scale) ? encodeCodebook(scale) : encodeChannelRms(scale);

/** @throws StillhouseError CACHE_FILE_UNREADABLE */
export function readScale(path: string, { labels, teacher }: CacheDescription): Promise<HiddenScale> {
  const width = teacher!.hiddenSize;
  return labels.hidden!.dtype === 'coded' ? readCodebook(path, width) : readChannelRms(path, width);
}
