import type { ModelConfig } from '@stillhouse/checkpoint';
import { type FloatDtype, GraphBuilder, type Value } from '@stillhouse/onnx-graph';
import { GROUP_CHANNELS, type HiddenDtype, LARGEST_CODE } from '@stillhouse/teacher-cache';

/**
 * Top-k and log Z of N positions over the whole vocabulary. With z the logits, m their maximum and
 * S(T) = Σ_i exp((z_i - m) / T): logprob_i = z_i - m - log S(1), and log_z(T) = log Σ_i exp(logprob_i / T) =
 * log S(T) - log S(1) / T, where m and with it most of the rounding drops out, and which is exactly 0 at T = 1.
 *
 * Inputs: x [N, H] (after the final norm), head [V, H]. Outputs: ids int32 [N, k] by descending logit (the lower id
 * first among equals, as ONNX TopK has it), logprobs [N, k], logZ [N, temperatures].
 */
export function topKGraph(
  config: Pick<ModelConfig, 'hiddenSize' | 'vocabSize'>,
  labels: { readonly k: number; readonly temperatures: readonly number[] },
  float: FloatDtype = 'float32',
): GraphBuilder {
  const g = new GraphBuilder('top_k', float);
  const x = g.floatInput('x', ['N', config.hiddenSize]);
  const head = g.floatInput('head', [config.vocabSize, config.hiddenSize]);
  // Passes over [N, V] are what costs here, so the hottest temperature is divided out before the product, and its
  // exponentials serve the others.
  const hottest = Math.max(1, ...labels.temperatures);
  const scaled = g.gemm(g.scale(x, 1 / hottest), head, { transB: true });
  const largest = g.reduceMax(scaled, [1], true);
  const shifted = g.sub(scaled, largest);
  const sumAt = emitSums(g, shifted, hottest);
  const logSum = new Map([...new Set([1, ...labels.temperatures])].map((T) => [T, g.log(sumAt(T))]));
  const { values, indices } = g.topK(scaled, labels.k, 1);
  g.output('ids', g.cast(indices, 'int32'));
  g.output('logprobs', g.sub(g.scale(g.sub(values, largest), hottest), logSum.get(1)!));
  const columns = labels.temperatures.map((T) => g.sub(logSum.get(T)!, g.scale(logSum.get(1)!, 1 / T)));
  g.output('logZ', columns.length === 1 ? columns[0]! : g.concat(columns, 1));
  return g;
}

/**
 * S(T) = Σ exp(shifted · hottest / T) as [N, 1], for `shifted` [N, V] at the hottest temperature. Where hottest / T is
 * a power of two, squares of the one exponential do.
 */
function emitSums(g: GraphBuilder, shifted: Value, hottest: number): (temperature: number) => Value {
  const powers = [g.exp(shifted)];
  const power = (squarings: number): Value => {
    while (powers.length <= squarings) powers.push(g.mul(powers.at(-1)!, powers.at(-1)!));
    return powers[squarings]!;
  };
  return (temperature) => {
    const ratio = hottest / temperature;
    const squarings = Math.log2(ratio);
    if (!Number.isInteger(squarings)) return g.reduceSum(g.exp(g.scale(shifted, ratio)), [1], true);
    if (squarings === 0) return g.reduceSum(power(0), [1], true);
    return g.reduceSumSquare(power(squarings - 1), [1], true);
  };
}

/** Below this a scale would be lost to underflow; the smallest normal float32. */
const LEAST_SCALE = 2 ** -126;

/** The least scale of a group, as `quantiseHiddenGroups` has it. */
const LEAST_GROUP_SCALE = 2 ** -14;

/**
 * Hidden states as the cache stores them; int8 and int8-groups are bit for bit what `quantiseHidden` and
 * `quantiseHiddenGroups` of the cache package give, but for the sign of zero.
 * Inputs: x [N, H]; for int8 channelRms [H]; for coded mean [H] and encode [H, R]. Outputs: values [N, H], for coded
 * int32 [N, R]; for int8 tokenScale [N]; for int8-groups groupScale float16 [N, H / 64]; and check [N], which is 0 where
 * all states are finite numbers and NaN elsewhere.
 */
export function hiddenGraph(hiddenSize: number, dtype: HiddenDtype): GraphBuilder {
  const g = new GraphBuilder(`hidden_${dtype}`, 'float32');
  const x = g.floatInput('x', ['N', hiddenSize]);
  g.output('check', g.reduceSum(g.scale(x, 0), [1]));
  const roundTo = (levels: Value, largest: number) =>
    g.max(g.min(g.round(levels), g.scalar(largest)), g.scalar(-largest));
  if (dtype === 'float16' || dtype === 'float32') {
    g.output('values', g.cast(x, dtype));
    return g;
  }
  if (dtype === 'coded') {
    const centred = g.sub(x, g.floatInput('mean', [hiddenSize]));
    const coordinates = g.gemm(centred, g.floatInput('encode', [hiddenSize, 'R']));
    g.output('values', g.cast(roundTo(coordinates, LARGEST_CODE), 'int32'));
    return g;
  }
  if (dtype === 'int8-groups') {
    const groups = hiddenSize / GROUP_CHANNELS;
    const grouped = g.reshape(x, ['N', groups, GROUP_CHANNELS]);
    const wanted = g.max(g.div(g.reduceMax(g.abs(grouped), [2], true), g.scalar(127)), g.scalar(LEAST_GROUP_SCALE));
    const scale = g.cast(wanted, 'float16');
    const levels = roundTo(g.div(grouped, g.cast(scale, 'float32')), 127);
    g.output('values', g.cast(g.reshape(levels, ['N', hiddenSize]), 'int8'));
    g.output('groupScale', g.reshape(scale, ['N', groups]));
    return g;
  }
  const normalised = g.div(x, g.floatInput('channelRms', [hiddenSize]));
  const largest = g.reduceMax(g.abs(normalised), [1], true);
  const scale = g.max(g.div(largest, g.scalar(127)), g.scalar(LEAST_SCALE));
  g.output('values', g.cast(roundTo(g.div(normalised, scale), 127), 'int8'));
  g.output('tokenScale', g.reshape(scale, ['N']));
  return g;
}
