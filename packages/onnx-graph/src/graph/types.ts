import type { Dtype, Shape } from '@stillhouse/tensor-types';

/** The types that gradients flow through. Emitters take one, so that a float64 twin of every graph exists. */
export type FloatDtype = 'float32' | 'float64';

export interface TensorType {
  readonly dtype: Dtype;
  readonly shape: Shape;
}

export type ConstantData = Float64Array | Float32Array | BigInt64Array | Int32Array | Uint8Array;

/** A tensor in a graph. Identity is the object itself; `name` is unique within its graph. */
export interface Value extends TensorType {
  readonly name: string;
  /** The node that computes it; absent for graph inputs and constants. */
  readonly node?: Node;
  /** Present on constants only: the elements in row-major order. */
  readonly constant?: ConstantData;
}

export type AttributeValue = number | string | boolean | readonly number[] | Shape;

/** One operator application. */
export interface Node {
  readonly name: string;
  readonly op: OperatorName;
  /** `undefined` stands for an optional input that is left out. */
  readonly inputs: readonly (Value | undefined)[];
  readonly outputs: readonly Value[];
  readonly attributes: OperatorAttributes[OperatorName];
}

export interface NoAttributes {
  readonly [key: string]: never;
}
interface ReduceAttributes {
  /** Non-negative, ascending. */
  readonly axes: readonly number[];
  readonly keepDims: boolean;
}
interface AxisAttribute {
  readonly axis: number;
}
interface ShapeAttribute {
  /** The shape to arrive at; encoded as the operator's shape input. */
  readonly target: Shape;
}

/**
 * Every operator the builder knows, with its attributes. The tables of types and of gradients are exhaustive over it.
 */
export interface OperatorAttributes {
  Add: NoAttributes;
  Sub: NoAttributes;
  Mul: NoAttributes;
  Div: NoAttributes;
  Max: NoAttributes;
  Min: NoAttributes;
  Neg: NoAttributes;
  Abs: NoAttributes;
  Exp: NoAttributes;
  Log: NoAttributes;
  Sqrt: NoAttributes;
  Reciprocal: NoAttributes;
  Sigmoid: NoAttributes;
  Cos: NoAttributes;
  Sin: NoAttributes;
  Round: NoAttributes;
  Identity: NoAttributes;
  Cast: { readonly to: Dtype };
  BitCast: { readonly to: Dtype };
  Equal: NoAttributes;
  Less: NoAttributes;
  GreaterOrEqual: NoAttributes;
  And: NoAttributes;
  Not: NoAttributes;
  Where: NoAttributes;
  MatMul: NoAttributes;
  Gemm: { readonly transA: boolean; readonly transB: boolean };
  Transpose: { readonly permutation: readonly number[] };
  Reshape: ShapeAttribute;
  Expand: ShapeAttribute;
  Concat: AxisAttribute;
  Split: AxisAttribute & { readonly sizes: readonly number[] };
  /** The entries from `start` to `end` along the axis. */
  Slice: AxisAttribute & { readonly start: number; readonly end: number };
  Gather: NoAttributes;
  GatherElements: AxisAttribute;
  ScatterElements: AxisAttribute & { readonly reduction: 'none' | 'add' };
  ScatterND: { readonly reduction: 'none' | 'add' };
  ReduceSum: ReduceAttributes;
  ReduceMean: ReduceAttributes;
  ReduceMax: ReduceAttributes;
  ReduceLogSumExp: ReduceAttributes;
  ReduceSumSquare: ReduceAttributes;
  Softmax: AxisAttribute;
  LogSoftmax: AxisAttribute;
  RMSNormalization: { readonly epsilon: number };
  RotaryEmbedding: { readonly heads: number };
  TopK: AxisAttribute & { readonly k: number };
  ArgMax: AxisAttribute;
  Shape: { readonly start: number; readonly end: number };
}

export type OperatorName = keyof OperatorAttributes;

/**
 * What one node adds to the gradient of one input: either a value, or a function that emits the sum of `into` and
 * the contribution. The second form lets a matrix product accumulate in its C operand and a scatter in its data,
 * so that no separate addition (and no second buffer of the parameter's size) is needed.
 */
export type Contribution = Value | ((into: Value | undefined) => Value);

export function isFloat(dtype: Dtype): dtype is FloatDtype {
  return dtype === 'float32' || dtype === 'float64';
}
