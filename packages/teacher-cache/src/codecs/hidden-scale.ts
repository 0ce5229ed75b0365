import { type CacheDescription, type HiddenDtype, hiddenGroup } from '../format/description.ts';
import type { HiddenLayer } from '../format/hidden-layer.ts';
import type { HiddenCodebook } from './hidden-codebook.ts';

/** What all states of a layer are decoded with: the RMS of each channel for `int8`, a codebook for `coded`. */
export type HiddenScale = Float32Array | HiddenCodebook;

export const isCodebook = (scale: HiddenScale): scale is HiddenCodebook => !(scale instanceof Float32Array);

const isScaled = (dtype: HiddenDtype) => dtype === 'int8' || dtype === 'coded';

/** The layers whose states need a scale before the first shard. */
export const scaledLayers = ({ labels: { hidden } }: CacheDescription): readonly HiddenLayer[] =>
  hidden !== null && isScaled(hidden.dtype) ? hidden.layers : [];

export const scalePath = (layer: HiddenLayer, dtype: HiddenDtype) =>
  `scales/${hiddenGroup(layer)}.${dtype === 'coded' ? 'codebook' : 'channel_rms'}.arrow`;
