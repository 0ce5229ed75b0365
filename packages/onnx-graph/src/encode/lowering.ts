import type { Dtype } from '@stillhouse/tensor-types';
import type { OperatorName } from '../graph/types.ts';

/** One operator of an encoded graph, operands and results by name. */
export interface LoweredNode {
  readonly op: OperatorName;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly axis?: number;
  readonly keepDims?: boolean;
  readonly to?: Dtype;
  readonly transA?: boolean;
  readonly transB?: boolean;
}

export interface LogSumOperands {
  /** Prefix of the names of intermediate results. */
  readonly name: string;
  readonly x: string;
  readonly output: string;
  /** Name of the int64 constant with the axes that are reduced. */
  readonly axes: string;
  readonly keepDims: boolean;
}

/**
 * Operators in place of one that the WebGPU provider lacks or computes wrongly:
 * log Σ exp x = m + log Σ exp (x - m) with m the largest, and log softmax x = (x - m) - log Σ exp (x - m).
 */
export function lowerLogSum(
  op: 'LogSoftmax' | 'ReduceLogSumExp',
  { name, x, output, axes, keepDims }: LogSumOperands,
): readonly LoweredNode[] {
  const part = (suffix: string) => `${name}/${suffix}`;
  const common: LoweredNode[] = [
    { op: 'ReduceMax', inputs: [x, axes], outputs: [part('largest')], keepDims: true },
    { op: 'Sub', inputs: [x, part('largest')], outputs: [part('shifted')] },
    { op: 'Exp', inputs: [part('shifted')], outputs: [part('exponentials')] },
    {
      op: 'ReduceSum',
      inputs: [part('exponentials'), axes],
      outputs: [part('sum')],
      keepDims: op === 'LogSoftmax' || keepDims,
    },
    { op: 'Log', inputs: [part('sum')], outputs: [part('log')] },
  ];
  const done = [output];
  if (op === 'LogSoftmax') return [...common, { op: 'Sub', inputs: [part('shifted'), part('log')], outputs: done }];
  if (keepDims) return [...common, { op: 'Add', inputs: [part('largest'), part('log')], outputs: done }];
  return [
    ...common,
    { op: 'ReduceMax', inputs: [x, axes], outputs: [part('offset')], keepDims: false },
    { op: 'Add', inputs: [part('offset'), part('log')], outputs: done },
  ];
}

export interface RotaryOperands {
  /** Prefix of the names of intermediate results. */
  readonly name: string;
  /** [B, T, heads · headDim] */
  readonly x: string;
  /** [B, T, headDim / 2] */
  readonly cos: string;
  readonly sin: string;
  readonly output: string;
  /** Names of int64 constants, 0 standing for a dimension that stays. */
  readonly constants: {
    /** [0, 0, heads, headDim] */
    readonly perHead: string;
    /** [0, 0, 1, headDim / 2] */
    readonly table: string;
    /** [headDim / 2, headDim / 2] */
    readonly halves: string;
    /** [0, 0, heads · headDim] */
    readonly whole: string;
  };
}

/** RotaryEmbedding by plain operators: it takes no float64, and the WebGPU provider has no kernel for it. */
export function lowerRotaryEmbedding(operands: RotaryOperands): readonly LoweredNode[] {
  const { name, constants } = operands;
  const part = (suffix: string) => `${name}/${suffix}`;
  const turn = (op: 'Sub' | 'Add', minuend: string, other: string, output: string): readonly LoweredNode[] => [
    { op: 'Mul', inputs: [minuend, part('cos')], outputs: [`${output}.cos`] },
    { op: 'Mul', inputs: [other, part('sin')], outputs: [`${output}.sin`] },
    { op, inputs: [`${output}.cos`, `${output}.sin`], outputs: [output] },
  ];
  const [first, second] = [part('first'), part('second')];
  return [
    { op: 'Reshape', inputs: [operands.x, constants.perHead], outputs: [part('heads')] },
    { op: 'Reshape', inputs: [operands.cos, constants.table], outputs: [part('cos')] },
    { op: 'Reshape', inputs: [operands.sin, constants.table], outputs: [part('sin')] },
    { op: 'Split', inputs: [part('heads'), constants.halves], outputs: [first, second], axis: 3 },
    ...turn('Sub', first, second, part('first_turned')),
    ...turn('Add', second, first, part('second_turned')),
    { op: 'Concat', inputs: [part('first_turned'), part('second_turned')], outputs: [part('turned')], axis: 3 },
    { op: 'Reshape', inputs: [part('turned'), constants.whole], outputs: [operands.output] },
  ];
}

export interface GemmOperands {
  /** Prefix of the names of intermediate results. */
  readonly name: string;
  readonly a: string;
  readonly b: string;
  /** What is added to the product. */
  readonly c: string | undefined;
  readonly output: string;
  readonly transA: boolean;
  readonly transB: boolean;
}

/**
 * A product of float32 matrices as one of bfloat16 matrices, which tensor cores sum up in float32, rounded to bfloat16
 * as PyTorch's autocast does. What it is added to stays float32, so that sums over micro-batches lose nothing.
 */
export function lowerGemmToBfloat16({ name, a, b, c, output, transA, transB }: GemmOperands): readonly LoweredNode[] {
  const part = (suffix: string) => `${name}/${suffix}`;
  const product = c === undefined ? output : part('product');
  return [
    { op: 'Cast', inputs: [a], outputs: [part('a')], to: 'bfloat16' },
    { op: 'Cast', inputs: [b], outputs: [part('b')], to: 'bfloat16' },
    { op: 'Gemm', inputs: [part('a'), part('b')], outputs: [part('rounded')], transA, transB },
    { op: 'Cast', inputs: [part('rounded')], outputs: [product], to: 'float32' },
    ...(c === undefined ? [] : [{ op: 'Add', inputs: [product, c], outputs: [output] } as const]),
  ];
}
