import type { DeviceTensor, Engine } from '@stillhouse/runtime';
import { measureChannelRms } from '@stillhouse/teacher-cache';

/**
 * The channel scales of a layer by the states of the first shard.
 * One more position whose channels all have the mean size is counted in: beside thousands it changes nothing, and it
 * keeps a channel that happens to be silent in a small first shard from getting a scale that later values burst.
 * @param states [positions, hiddenSize]; without positions all scales are 1
 */
export async function measureLayerRms(engine: Engine, states: DeviceTensor): Promise<Float32Array> {
  const measured = (await engine.download(states)) as Float32Array;
  const width = states.shape[1]!;
  const withPrior = new Float32Array(measured.length + width);
  withPrior.set(measured);
  withPrior.fill(meanSize(measured), measured.length);
  return measureChannelRms(withPrior, width);
}

/** Root mean square over everything, 1 where there is nothing. */
function meanSize(values: Float32Array): number {
  const sum = values.reduce((total, value) => total + value * value, 0);
  return sum > 0 && Number.isFinite(sum) ? Math.sqrt(sum / values.length) : 1;
}
