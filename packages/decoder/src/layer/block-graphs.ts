import { describeLayer, type ModelConfig } from '@stillhouse/checkpoint';
import { type FloatDtype, GraphBuilder, type GraphHints } from '@stillhouse/onnx-graph';
import { type Dim, multiplyDims } from '@stillhouse/tensor-types';
import { emitBlockBias } from '../attention/attention-bias.ts';
import { type BlockInputs, type BlockWeights, emitBlock } from './block.ts';
import { type AdapterValues, adapterParameters, type LowRankAdapter } from './low-rank-adapter.ts';

export function weightInputs(g: GraphBuilder, config: ModelConfig): BlockWeights {
  return new Map(describeLayer(config).map(({ name, shape }) => [name, g.floatInput(name, shape)]));
}

export function adapterInputs(g: GraphBuilder, config: ModelConfig, adapter: LowRankAdapter | undefined) {
  if (adapter === undefined) return {};
  const weights = adapterParameters(config, adapter).map(
    ({ name, shape }) => [name, g.floatInput(name, shape)] as const,
  );
  const values: AdapterValues = { scale: adapter.scale, weights: new Map(weights) };
  return { adapter: values };
}

export const layerHints = (queryBlocks: number): GraphHints => ({
  allowsCoarseProducts: true,
  takesShapes: queryBlocks > 1,
});

type BlockGraphInputs = Pick<BlockInputs, 'x' | 'rotary' | 'bias'>;

function streamInputs(g: GraphBuilder, config: ModelConfig, length: Dim): Omit<BlockGraphInputs, 'bias'> {
  const tables = ['B', length, config.headDim / 2];
  return {
    x: g.floatInput('x', [multiplyDims('B', length), config.hiddenSize]),
    rotary: { cos: g.floatInput('cos', tables), sin: g.floatInput('sin', tables) },
  };
}

/** Where queries attend block by block the bias of each is made in the graph, from segments and columns. */
export function blockInputs(g: GraphBuilder, config: ModelConfig, queryBlocks: number): BlockGraphInputs {
  if (queryBlocks === 1) {
    return { ...streamInputs(g, config, 'T'), bias: g.floatInput('bias', ['B', 1, 1, 'T', 'T']) };
  }
  const segments = g.input('segments', 'int32', ['B', queryBlocks, 'Q']);
  const columns = g.input('columns', 'int32', [queryBlocks, 'Q']);
  const bias = {
    blocks: queryBlocks,
    blockLength: 'Q',
    emitBlock: (block: number) => g.scope('bias', () => emitBlockBias(g, segments, columns, block)),
  };
  return { ...streamInputs(g, config, multiplyDims(queryBlocks, 'Q')), bias };
}

/** The sizes of the symbols in graphs of layers for a batch of [rows, length]. */
export const batchSymbols = (rows: number, length: number, queryBlocks: number): Readonly<Record<string, number>> => ({
  B: rows,
  ...(queryBlocks === 1 ? { T: length } : { Q: length / queryBlocks }),
});

/** Output of a graph of a layer: what attention adds to the residual stream, [B·T, H]. */
export const ATTENTION_OUTPUT = 'attention.output';

/**
 * One layer. Inputs: x [B·T, H], cos, sin, bias, the layer's weights and those of its adapters. Outputs: y [B·T, H]
 * and, by choice, the weights of attention (`attention`) and what it adds to the residual stream (`attention.output`).
 * With S > 1 query blocks, T is S·Q, and in the place of the bias stand segments [B, S, Q] and columns [S, Q] (int32).
 */
export function blockGraph(
  config: ModelConfig,
  float: FloatDtype,
  options: {
    /** S. Default 1. */
    readonly queryBlocks?: number;
    /** Of one block only. */
    readonly attention?: boolean;
    readonly adapter?: LowRankAdapter;
    readonly exposesAttention?: boolean;
  } = {},
): GraphBuilder {
  const { exposesAttention = false, queryBlocks = 1 } = options;
  const g = new GraphBuilder('block', float, layerHints(queryBlocks));
  const inputs = blockInputs(g, config, queryBlocks);
  const weights = weightInputs(g, config);
  const adapter = adapterInputs(g, config, options.adapter);
  const block = emitBlock(g, config, { ...inputs, exposesAttention, weights, ...adapter });
  g.output('y', block.x);
  if (options.attention) g.output('attention', g.reshape(block.attention!, ['B', config.headCount, 'T', 'T']));
  if (block.attentionOutput !== undefined) g.output(ATTENTION_OUTPUT, block.attentionOutput);
  return g;
}

/**
 * One layer over a KV cache, for prefill and for single steps. Inputs: x, cos, sin, bias [B, 1, 1, T, S], keys and
 * values [B·kvHeads·S, headDim], slotRows int64 [B·kvHeads·T, 1], weights.
 * Outputs: y, keys.written, values.written (meant to alias keys and values).
 */
export function cachedBlockGraph(config: ModelConfig, float: FloatDtype): GraphBuilder {
  const g = new GraphBuilder('cached_block', float, layerHints(1));
  const inputs = streamInputs(g, config, 'T');
  const bias = g.floatInput('bias', ['B', 1, 1, 'T', 'S']);
  const store = [`${config.kvHeadCount}*B*S`, config.headDim];
  const cache = {
    keys: g.floatInput('keys', store),
    values: g.floatInput('values', store),
    slotRows: g.input('slotRows', 'int64', [`${config.kvHeadCount}*B*T`, 1]),
    slots: 'S',
  };
  const out = emitBlock(g, config, { ...inputs, bias, cache, weights: weightInputs(g, config) });
  g.output('y', out.x);
  g.output('keys.written', out.cache!.keys);
  g.output('values.written', out.cache!.values);
  return g;
}
