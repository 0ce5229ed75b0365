import { adapterNames, describeLayer, type ModelConfig, type ParameterSpec } from '@stillhouse/checkpoint';
import { type FloatDtype, GraphBuilder, type Value } from '@stillhouse/onnx-graph';

/** The linear layers of a decoder layer, named as checkpoints and PEFT do. */
export const LINEAR_NAMES = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'] as const;

export type LinearName = (typeof LINEAR_NAMES)[number];

export const isLinearName = (value: unknown): value is LinearName =>
  (LINEAR_NAMES as readonly unknown[]).includes(value);

/**
 * LoRA (Hu et al. 2021, arXiv 2106.09685, eq. 3): a linear layer with weight W [out, in] gives x Wᵀ + scale · (x Aᵀ)
 * Bᵀ, with A [rank, in] and B [out, rank].
 */
export interface LowRankAdapter {
  readonly rank: number;
  /** alpha / rank. */
  readonly scale: number;
  /** The linear layers that have one. */
  readonly targets: readonly LinearName[];
}

/** A linear layer that has an adapter: its local name and the sides of its weight. */
export interface AdaptedLinear {
  readonly name: string;
  readonly outSize: number;
  readonly inSize: number;
}

/** The adapted linear layers of a layer, in checkpoint order. */
export function adaptedLinears(config: ModelConfig, { targets }: LowRankAdapter): readonly AdaptedLinear[] {
  return describeLayer(config).flatMap(({ name, shape: [outSize, inSize] }) => {
    const linear = name.replace(/\.weight$/, '');
    const isTarget = (targets as readonly string[]).includes(linear.split('.').at(-1)!);
    return isTarget ? [{ name: linear, outSize: outSize!, inSize: inSize! }] : [];
  });
}

/** The adapters' tensors of a layer: local names and shapes. */
export function adapterParameters(config: ModelConfig, adapter: LowRankAdapter): readonly ParameterSpec[] {
  const { rank } = adapter;
  return adaptedLinears(config, adapter).flatMap(({ name, outSize, inSize }) => {
    const { a, b } = adapterNames(name);
    return [
      { name: a, shape: [rank, inSize] },
      { name: b, shape: [outSize, rank] },
    ];
  });
}

/** The adapters' values in a block's graph. */
export interface AdapterValues {
  readonly scale: number;
  readonly weights: ReadonlyMap<string, Value>;
}

/** `product` [N, out] of the linear layer `name` on x [N, in], with what its adapter adds where it has one. */
export function emitAdapter(
  g: GraphBuilder,
  adapter: AdapterValues | undefined,
  name: string,
  { x, product }: { readonly x: Value; readonly product: Value },
): Value {
  const names = adapterNames(name);
  const [a, b] = [adapter?.weights.get(names.a), adapter?.weights.get(names.b)];
  if (adapter === undefined || a === undefined || b === undefined) return product;
  return g.scope('lora', () =>
    g.gemm(g.scale(g.gemm(x, a, { transB: true }), adapter.scale), b, { transB: true, c: product }),
  );
}

/**
 * A linear layer's weight with its adapter in it, W + scale · B A. Inputs: w [O, I], a [R, I], b [O, R]. Output:
 * merged.
 */
export function mergeAdapterGraph({ scale }: LowRankAdapter, float: FloatDtype): GraphBuilder {
  const g = new GraphBuilder('merge_adapter', float);
  const [w, a, b] = [g.floatInput('w', ['O', 'I']), g.floatInput('a', ['R', 'I']), g.floatInput('b', ['O', 'R'])];
  g.output('merged', g.gemm(g.scale(b, scale), a, { c: w }));
  return g;
}
