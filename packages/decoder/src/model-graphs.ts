import { describeLayer, type ModelConfig } from '@stillhouse/checkpoint';
import {
  differentiate,
  type FloatDtype,
  findCut,
  GraphBuilder,
  type GraphHints,
  type OperatorName,
  type Value,
} from '@stillhouse/onnx-graph';
import { type Dim, multiplyDims, type Shape } from '@stillhouse/tensor-types';
import { emitBlockBias, emitCacheBias, emitSegmentBias } from './attention-bias.ts';
import { type BlockInputs, type BlockWeights, emitBlock } from './block.ts';
import { type AdapterValues, adapterParameters, emitMerged, type LowRankAdapter } from './low-rank-adapter.ts';

/** The input that takes a gradient accumulator for the input `name`, and the output that holds the sum. */
export const gradientName = (name: string) => `gradient.${name}`;

function weightInputs(g: GraphBuilder, config: ModelConfig): BlockWeights {
  return new Map(describeLayer(config).map(({ name, shape }) => [name, g.floatInput(name, shape)]));
}

function adapterInputs(g: GraphBuilder, config: ModelConfig, adapter: LowRankAdapter | undefined) {
  if (adapter === undefined) return {};
  const weights = adapterParameters(config, adapter).map(
    ({ name, shape }) => [name, g.floatInput(name, shape)] as const,
  );
  const values: AdapterValues = { scale: adapter.scale, weights: new Map(weights) };
  return { adapter: values };
}

/** A linear layer's weight with its adapter taken in. Inputs: w [O, I], a [R, I], b [O, R]. Output: merged [O, I]. */
export function mergeAdapterGraph(adapter: LowRankAdapter, float: FloatDtype): GraphBuilder {
  const g = new GraphBuilder('merge_adapter', float);
  emitMerged(g, adapter);
  return g;
}

/** Attention bias of a batch, for every layer. Inputs: segments [B, T], columns [T] (int32). Output: bias. */
export function segmentBiasGraph(float: FloatDtype): GraphBuilder {
  const g = new GraphBuilder('segment_bias', float);
  const segments = g.input('segments', 'int32', ['B', 'T']);
  const columns = g.input('columns', 'int32', ['T']);
  g.output('bias', emitSegmentBias(g, segments, columns));
  return g;
}

/** As `segmentBiasGraph`, for attention over a KV cache. Inputs: positions [B, T], slots [S] (int32). */
export function cacheBiasGraph(float: FloatDtype): GraphBuilder {
  const g = new GraphBuilder('cache_bias', float);
  const positions = g.input('positions', 'int32', ['B', 'T']);
  const slots = g.input('slots', 'int32', ['S']);
  g.output('bias', emitCacheBias(g, positions, slots));
  return g;
}

/** Token embeddings. Inputs: ids int64 [N], table [V, H]. Output: x [N, H]. */
export function embeddingGraph(config: ModelConfig, float: FloatDtype): GraphBuilder {
  const g = new GraphBuilder('embedding', float);
  const ids = g.input('ids', 'int64', ['N']);
  const table = g.floatInput('table', [config.vocabSize, config.hiddenSize]);
  g.output('x', g.gather(table, ids));
  return g;
}

const layerHints = (queryBlocks: number): GraphHints => ({ allowsCoarseProducts: true, takesShapes: queryBlocks > 1 });

/** The gradient of attention by blocks computes each block's weights again. */
const gradientHints = (queryBlocks: number): GraphHints => ({
  ...layerHints(queryBlocks),
  computesAgain: queryBlocks > 1,
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
function blockInputs(g: GraphBuilder, config: ModelConfig, queryBlocks: number): BlockGraphInputs {
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
/** Input of a gradient of a layer: the gradient of the attention output, [B·T, H]. */
export const ATTENTION_SEED = 'dAttention';

/**
 * One layer. Inputs: x [B·T, H], cos, sin, bias, the layer's weights and those of its adapters. Outputs: y [B·T, H] and,
 * by choice, the weights of attention (`attention`) and what it adds to the residual stream (`attention.output`).
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

interface BlockGradient {
  readonly g: GraphBuilder;
  /** Outputs of the layer by name. */
  readonly outputs: ReadonlyMap<string, Value>;
  /** Everything the forward pass computed. */
  readonly forward: ReadonlySet<Value>;
}

/** What of a layer's gradient is wanted. */
export interface BlockGradientOptions {
  /** S, as `blockGraph` has it. Default 1. */
  readonly queryBlocks?: number;
  /** The layer's adapters, whose tensors are further weights. */
  readonly adapter?: LowRankAdapter;
  /** Which weights take one, by their local name. Default: all. */
  readonly trained?: (name: string) => boolean;
  /** Whether it goes on to the residual stream before the layer, as something below learns too. Default true. */
  readonly hasInputGradient?: boolean;
  /** Whether a gradient comes to the attention output too, which the forward pass then gives. Default false. */
  readonly hasAttentionSeed?: boolean;
}

function emitBlockGradient(config: ModelConfig, float: FloatDtype, options: BlockGradientOptions): BlockGradient {
  const { queryBlocks = 1, trained = () => true, hasInputGradient = true, hasAttentionSeed = false } = options;
  const g = new GraphBuilder('block_gradient', float, gradientHints(queryBlocks));
  const inputs = blockInputs(g, config, queryBlocks);
  const weights = weightInputs(g, config);
  const adapter = adapterInputs(g, config, options.adapter);
  const block = emitBlock(g, config, { ...inputs, weights, ...adapter, exposesAttention: hasAttentionSeed });
  const forward = new Set(g.nodes.flatMap(({ outputs }) => outputs));
  const { x: y, attentionOutput } = block;
  const outputs = new Map([['y', y]]);
  const seeds: [Value, Value][] = [[y, g.floatInput('dy', y.shape)]];
  if (attentionOutput !== undefined) {
    outputs.set(ATTENTION_OUTPUT, attentionOutput);
    seeds.push([attentionOutput, g.floatInput(ATTENTION_SEED, attentionOutput.shape)]);
  }
  const wanted = [...weights, ...(adapter.adapter?.weights ?? [])].filter(([name]) => trained(name));
  const accumulateInto = new Map(wanted.map(([name, value]) => [value, g.floatInput(gradientName(name), value.shape)]));
  const gradients = differentiate(g, {
    seeds,
    withRespectTo: [...(hasInputGradient ? [inputs.x] : []), ...wanted.map(([, value]) => value)],
    accumulateInto,
  });
  if (hasInputGradient) g.output('dx', gradients.get(inputs.x)!);
  for (const [name, value] of wanted) g.output(`${gradientName(name)}.sum`, gradients.get(value)!);
  return { g, outputs, forward };
}

/**
 * One layer backwards, its forward pass recomputed. Inputs: those of `blockGraph`, dy [B·T, H], by choice dAttention
 * [B·T, H], and for each trained weight W an accumulator `gradient.W`. Outputs: dx, where it is wanted, and
 * `gradient.W.sum`, meant to alias the accumulator.
 */
export function blockGradientGraph(
  config: ModelConfig,
  float: FloatDtype,
  options: BlockGradientOptions = {},
): GraphBuilder {
  return emitBlockGradient(config, float, options).g;
}

/** An activation of one layer that its gradient takes from the forward pass instead of computing it again. */
export interface SavedActivation {
  readonly name: string;
  readonly shape: Shape;
}

export interface SavingBlockGraphs {
  /** As `blockGraph`, with the saved activations as further outputs. */
  readonly forward: GraphBuilder;
  /** As `blockGradientGraph`, with the saved activations as further inputs, and without the inputs it then does not need. */
  readonly gradient: GraphBuilder;
  readonly saved: readonly SavedActivation[];
}

/** What is dear to compute again; all that lies between is cheap element by element, and dear to keep. */
const SAVED_OPERATORS: ReadonlySet<OperatorName> = new Set<OperatorName>([
  'Gemm',
  'MatMul',
  'Softmax',
  'RMSNormalization',
]);

/** One layer forwards and backwards without recomputation: results of products, softmax and norms are kept in between. */
export function savingBlockGraphs(
  config: ModelConfig,
  float: FloatDtype,
  options: BlockGradientOptions = {},
): SavingBlockGraphs {
  const { g: gradient, forward: forwardValues } = emitBlockGradient(config, float, options);
  const isSaved = (value: Value) => forwardValues.has(value) && SAVED_OPERATORS.has(value.node!.op);
  const cut = findCut(gradient.outputs.values(), isSaved);
  const saved = cut.map((value) => ({ name: `saved.${value.name}`, shape: value.shape }));
  cut.forEach((value, i) => {
    gradient.cut(saved[i]!.name, value);
  });
  // The same emission in a graph of its own gives the same names.
  const { g: forward, outputs } = emitBlockGradient(config, float, options);
  forward.outputs.clear();
  const byName = new Map(forward.nodes.flatMap(({ outputs }) => outputs.map((value) => [value.name, value])));
  for (const [name, value] of outputs) forward.output(name, value);
  cut.forEach((value, i) => {
    forward.output(saved[i]!.name, byName.get(value.name)!);
  });
  return { forward, gradient, saved };
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

/** Rows of the residual stream by index. Inputs: x [N, H], indices int64 [M]. Output: rows [M, H]. */
export function gatherRowsGraph(hiddenSize: number, float: FloatDtype): GraphBuilder {
  const g = new GraphBuilder('gather_rows', float);
  const x = g.floatInput('x', ['N', hiddenSize]);
  const indices = g.input('indices', 'int64', ['M']);
  g.output('rows', g.gather(x, indices));
  return g;
}

/** The reverse of `gatherRowsGraph`: adds rows [M, H] to x [N, H] at `indices` int64 [M, 1]. Output: x.sum, meant to alias x. */
export function scatterRowsGraph(hiddenSize: number, float: FloatDtype): GraphBuilder {
  const g = new GraphBuilder('scatter_rows', float);
  const x = g.floatInput('x', ['N', hiddenSize]);
  const indices = g.input('indices', 'int64', ['M', 1]);
  const rows = g.floatInput('rows', ['M', hiddenSize]);
  g.output('x.sum', g.scatterAddRows(x, indices, rows));
  return g;
}
