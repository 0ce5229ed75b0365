import type { ModelConfig } from '@stillhouse/checkpoint';
import { emitRowSum } from '@stillhouse/objectives';
import { type FloatDtype, GraphBuilder, type Value } from '@stillhouse/onnx-graph';

/** What is read off the logits. */
export interface DistributionOutputs {
  /** The k most probable ids, log Z, and `keptIds` other ids a position whose logprobs are wanted. */
  readonly topk: { readonly k: number; readonly temperatures: readonly number[]; readonly keptIds: number } | null;
  /** Weights to draw ids by. */
  readonly sampled: { readonly temperature: number } | null;
}

/** Ids of a block of sampling weights: their sums are looked through first, then one block. */
export const BLOCK_IDS = 128;

export const countBlocks = (vocabSize: number): number => Math.ceil(vocabSize / BLOCK_IDS);

/**
 * Labels of N positions over the whole vocabulary. With z the logits, m their maximum and
 * S(T) = Σ_i exp((z_i - m) / T): logprob_i = z_i - m - log S(1), and log_z(T) = log Σ_i exp(logprob_i / T) =
 * log S(T) - log S(1) / T, where m and with it most of the rounding drops out, and which is exactly 0 at T = 1.
 *
 * Inputs: x [N, H] (after the final norm), head [V, H]; keptIds int64 [N, E] where E > 0.
 * Outputs for `topk`: ids int32 [N, k] by descending logit (the lower id first among equals, as ONNX TopK has it),
 * logprobs [N, k], logZ [N, temperatures], keptLogprobs [N, E] where E > 0.
 * Outputs for `sampled`: weights [N, blocks · 128], exp((z - m) / T) and then zeros; blockSums [N, blocks].
 */
export function distributionGraph(
  config: Pick<ModelConfig, 'hiddenSize' | 'vocabSize'>,
  { topk, sampled }: DistributionOutputs,
  float: FloatDtype = 'float32',
): GraphBuilder {
  const g = new GraphBuilder('distribution', float);
  const x = g.floatInput('x', ['N', config.hiddenSize]);
  const head = g.floatInput('head', [config.vocabSize, config.hiddenSize]);
  // Passes over [N, V] are what costs here, so the hottest temperature is divided out before the product, and its
  // exponentials serve the others.
  const hottest = Math.max(1, ...(topk?.temperatures ?? []), ...(sampled === null ? [] : [sampled.temperature]));
  const scaled = g.gemm(g.scale(x, 1 / hottest), head, { transB: true });
  const largest = g.reduceMax(scaled, [1], true);
  const exponentials = emitExponentials(g, g.sub(scaled, largest), hottest);
  if (topk !== null) {
    const { k, temperatures, keptIds } = topk;
    const logSum = new Map([...new Set([1, ...temperatures])].map((T) => [T, g.log(exponentials.sumAt(T))]));
    const toLogprobs = (values: Value) => g.sub(g.scale(g.sub(values, largest), hottest), logSum.get(1)!);
    const { values, indices } = g.topK(scaled, k, 1);
    g.output('ids', g.cast(indices, 'int32'));
    g.output('logprobs', toLogprobs(values));
    const columns = temperatures.map((T) => g.sub(logSum.get(T)!, g.scale(logSum.get(1)!, 1 / T)));
    g.output('logZ', columns.length === 1 ? columns[0]! : g.concat(columns, 1));
    if (keptIds > 0)
      g.output('keptLogprobs', toLogprobs(g.gatherElements(scaled, g.input('keptIds', 'int64', ['N', keptIds]), 1)));
  }
  if (sampled !== null) {
    const blocks = countBlocks(config.vocabSize);
    const missing = blocks * BLOCK_IDS - config.vocabSize;
    const own = exponentials.at(sampled.temperature);
    const weights = missing === 0 ? own : g.concat([own, g.zeros(['N', missing])], 1);
    g.output('weights', weights);
    g.output('blockSums', g.reduceSum(g.reshape(weights, ['N', blocks, BLOCK_IDS]), [2]));
  }
  return g;
}

interface Exponentials {
  /** exp(shifted · hottest / T), [N, V]. */
  at(temperature: number): Value;
  /** Its sum, [N, 1]. */
  sumAt(temperature: number): Value;
}

/**
 * Exponentials of `shifted` [N, V], which is at the hottest temperature, at others. Where hottest / T is a power of
 * two, squares of the one exponential do.
 */
function emitExponentials(g: GraphBuilder, shifted: Value, hottest: number): Exponentials {
  const powers = [g.exp(shifted)];
  const power = (squarings: number): Value => {
    while (powers.length <= squarings) powers.push(g.mul(powers.at(-1)!, powers.at(-1)!));
    return powers[squarings]!;
  };
  const at = (temperature: number): Value => {
    const ratio = hottest / temperature;
    const squarings = Math.log2(ratio);
    return Number.isInteger(squarings) ? power(squarings) : g.exp(g.scale(shifted, ratio));
  };
  return {
    at,
    sumAt: (temperature) => {
      // Block by block: ONNX Runtime adds a row up one by one, and over 151,936 float32 numbers that loses 1e-3.
      return emitRowSum(g, at(temperature));
    },
  };
}

/** Rows of `weights` [R, 128] by number: inputs weights, indices int64 [M]; output rows [M, 128]. */
export function blocksGraph(): GraphBuilder {
  const g = new GraphBuilder('blocks', 'float32');
  const weights = g.floatInput('weights', ['R', BLOCK_IDS]);
  g.output('rows', g.gather(weights, g.input('indices', 'int64', ['M'])));
  return g;
}
