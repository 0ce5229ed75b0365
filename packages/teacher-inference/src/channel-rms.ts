import type { DeviceTensor, Engine } from '@stillhouse/runtime';
import { type CacheWriter, type HiddenLayer, measureChannelRms } from '@stillhouse/teacher-cache';

/** The int8 scales of a cache: those that are fixed, and fixing one. */
export type ChannelScales = Pick<CacheWriter, 'channelRms' | 'setChannelRms'>;

/**
 * The channel scales of a layer: what the cache has fixed, else measured on these states, the first shard's, and fixed.
 * One more position whose channels all have the mean size is counted in: beside thousands it changes nothing, and it
 * keeps a channel that happens to be silent in a small first shard from getting a scale that later values burst.
 * @param states [positions, hiddenSize]; without positions all scales are 1
 */
export async function fixChannelRms(
  engine: Engine,
  scales: ChannelScales,
  layer: HiddenLayer,
  states: DeviceTensor,
): Promise<Float32Array> {
  const known = scales.channelRms(layer);
  if (known !== undefined) return known;
  const measured = (await engine.download(states)) as Float32Array;
  const width = states.shape[1]!;
  const withPrior = new Float32Array(measured.length + width);
  withPrior.set(measured);
  withPrior.fill(meanSize(measured), measured.length);
  const rms = measureChannelRms(withPrior, width);
  await scales.setChannelRms(layer, rms);
  return rms;
}

/** Root mean square over everything, 1 where there is nothing. */
function meanSize(values: Float32Array): number {
  const sum = values.reduce((total, value) => total + value * value, 0);
  return sum > 0 && Number.isFinite(sum) ? Math.sqrt(sum / values.length) : 1;
}
