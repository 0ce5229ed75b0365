import type { ModelConfig } from '@stillhouse/checkpoint';
import {
  differentiate,
  type FloatDtype,
  findCut,
  GraphBuilder,
  type GraphHints,
  type OperatorName,
  type Value,
} from '@stillhouse/onnx-graph';
import type { Shape } from '@stillhouse/tensor-types';
import { gradientName } from '../gradient-name.ts';
import { emitBlock } from './block.ts';
import { ATTENTION_OUTPUT, adapterInputs, blockInputs, layerHints, weightInputs } from './block-graphs.ts';
import type { LowRankAdapter } from './low-rank-adapter.ts';

/** Input of a gradient of a layer: the gradient of the attention output, [B·T, H]. */
export const ATTENTION_SEED = 'dAttention';

/** The gradient of attention by blocks computes each block's weights again. */
const gradientHints = (queryBlocks: number): GraphHints => ({
  ...layerHints(queryBlocks),
  computesAgain: queryBlocks > 1,
});

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
  /**
   * As `blockGradientGraph`, with the saved activations as further inputs, and without the inputs it then does not
   * need.
   */
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

/**
 * One layer forwards and backwards without recomputation: results of products, softmax and norms are kept in between.
 */
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
