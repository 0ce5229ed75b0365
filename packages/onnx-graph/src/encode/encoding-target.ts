import type { Node, OperatorName } from '../graph/types.ts';

/** The provider that a model is encoded for; `any` is ONNX as it stands. */
export type EncodingTarget = 'any' | 'cuda' | 'webgpu';

/**
 * What matrix products round their operands to: nothing, tf32 (which is the provider's own affair), or bfloat16, which
 * is for graphs to do; products that they leave in float32 are then of tf32. Sums are float32 always.
 */
export type ProductPrecision = 'float32' | 'tf32' | 'bfloat16';

/**
 * The oldest operator set that has all operators of a graph. Providers register kernels for the versions of an operator
 * that they know, and ONNX Runtime takes none for a newer one, be it the same: CUDA's Reshape is of set 23, and in set
 * 26 the CPU would compute it.
 */
export function chooseOldestOpset(nodes: readonly Node[]): number {
  const has = (name: OperatorName) => nodes.some(({ op }) => op === name);
  return has('BitCast') ? 26 : has('RMSNormalization') || has('RotaryEmbedding') ? 23 : 21;
}
