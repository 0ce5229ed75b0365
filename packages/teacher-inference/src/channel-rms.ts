import type { DeviceTensor, Engine } from '@stillhouse/runtime';
import { type CacheWriter, type HiddenLayer, isCodebook, measureChannelRms } from '@stillhouse/teacher-cache';

/** What the layers of a cache are decoded with: what is fixed, and fixing it. */
export type LayerScales = Pick<CacheWriter, 'scale' | 'setScale'>;

/**
 * The channel scales of a layer: what the cache has fixed, else measured on these states, the first shard's, and fixed.
 * One more position whose channels all have the mean size is counted in: beside thousands it changes nothing, and it
 * keeps a channel that happens to be silent in a small first shard from getting a scale that later values burst.
 * @param states [positions, hiddenSize]; without positions all scales are 1
 */
export async function fixChannelRms(
  engine: Engine,
  scales: LayerScales,
  layer: HiddenLayer,
  states: DeviceTensor,
): Promise<Float32Array> {
  const known = takeFixed(scales, layer);
  if (known !== undefined) return known;
  const measured = (await engine.download(states)) as Float32Array;
  const width = states.shape[1]!;
  const withPrior = new Float32Array(measured.length + width);
  withPrior.set(measured);
  withPrior.fill(meanSize(measured), measured.length);
  const rms = measureChannelRms(withPrior, width);
  await scales.setScale(layer, rms);
  // Another builder of the same cache may have been first; then its numbers hold.
  return takeFixed(scales, layer) ?? rms;
}

function takeFixed(scales: LayerScales, layer: HiddenLayer): Float32Array | undefined {
  const scale = scales.scale(layer);
  return scale === undefined || isCodebook(scale) ? undefined : scale;
}

/** Root mean square over everything, 1 where there is nothing. */
function meanSize(values: Float32Array): number {
  const sum = values.reduce((total, value) => total + value * value, 0);
  return sum > 0 && Number.isFinite(sum) ? Math.sqrt(sum / values.length) : 1;
}
