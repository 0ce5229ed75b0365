import { shapesEqual } from '@stillhouse/tensor-types';
import type { GraphBuilder } from '../graph/builder.ts';
import { type Contribution, isFloat, type OperatorAttributes, type OperatorName, type Value } from '../graph/types.ts';
import { emitSumTo } from './broadcast-sum.ts';

export interface GradientContext<Name extends OperatorName> {
  readonly g: GraphBuilder;
  readonly inputs: readonly Value[];
  readonly outputs: readonly Value[];
  readonly attributes: OperatorAttributes[Name];
  /** Gradients of the outputs; `undefined` where nothing depends on an output. At least one is present. */
  readonly dOutputs: readonly (Value | undefined)[];
  /** Gradient of output 0. */
  readonly dy: Value;
  /** Whether the gradient of input `i` is wanted. */
  readonly needs: (i: number) => boolean;
}

/** One entry an input, `undefined` where the input has no gradient (integers, or not needed). */
export type GradientRule<Name extends OperatorName> = (
  context: GradientContext<Name>,
) => readonly (Contribution | undefined)[];

/** Why an operator has no gradient. */
export interface NoGradient {
  readonly reason: string;
}

const zeroAlmostEverywhere: NoGradient = { reason: 'its derivative is zero wherever it exists' };
const notContinuous: NoGradient = { reason: 'its output is not a differentiable number' };

export type GradientRules = { readonly [Name in OperatorName]: GradientRule<Name> | NoGradient };

/** Reverse-mode rules, one an operator, exhaustive by type. Each is checked in float64 against central differences. */
export const GRADIENT_RULES: GradientRules = {
  Add: ({ g, inputs: [a, b], dy }) => [emitSumTo(g, dy, a!.shape), emitSumTo(g, dy, b!.shape)],
  Sub: ({ g, inputs: [a, b], dy, needs }) => [
    emitSumTo(g, dy, a!.shape),
    needs(1) ? emitSumTo(g, g.neg(dy), b!.shape) : undefined,
  ],
  Mul: ({ g, inputs: [a, b], dy, needs }) => [
    needs(0) ? emitSumTo(g, g.mul(dy, b!), a!.shape) : undefined,
    needs(1) ? emitSumTo(g, g.mul(dy, a!), b!.shape) : undefined,
  ],
  Div: ({ g, inputs: [a, b], outputs: [y], dy, needs }) => {
    const da = g.div(dy, b!);
    return [emitSumTo(g, da, a!.shape), needs(1) ? emitSumTo(g, g.neg(g.mul(da, y!)), b!.shape) : undefined];
  },
  Max: { reason: 'only used on values that carry no gradient' },
  Min: { reason: 'only used on values that carry no gradient' },
  Neg: ({ g, dy }) => [g.neg(dy)],
  Abs: { reason: 'only used on values that carry no gradient' },
  Exp: ({ g, outputs: [y], dy }) => [g.mul(dy, y!)],
  Log: ({ g, inputs: [x], dy }) => [g.div(dy, x!)],
  Sqrt: ({ g, outputs: [y], dy }) => [g.div(g.scale(dy, 0.5), y!)],
  Reciprocal: ({ g, outputs: [y], dy }) => [g.neg(g.mul(dy, g.mul(y!, y!)))],
  Sigmoid: ({ g, outputs: [y], dy }) => [g.mul(dy, g.mul(y!, g.sub(g.scalar(1), y!)))],
  Cos: ({ g, inputs: [x], dy }) => [g.neg(g.mul(dy, g.sin(x!)))],
  Sin: ({ g, inputs: [x], dy }) => [g.mul(dy, g.cos(x!))],
  Round: zeroAlmostEverywhere,
  Identity: ({ dy }) => [dy],
  Cast: ({ g, inputs: [x], dy }) => [isFloat(x!.dtype) ? g.cast(dy, x!.dtype) : undefined],
  BitCast: notContinuous,
  Equal: notContinuous,
  Less: notContinuous,
  GreaterOrEqual: notContinuous,
  And: notContinuous,
  Not: notContinuous,
  Where: ({ g, inputs: [condition, a, b], dy, needs }) => [
    undefined,
    needs(1) ? emitSumTo(g, g.where(condition!, dy, g.scalar(0)), a!.shape) : undefined,
    needs(2) ? emitSumTo(g, g.where(condition!, g.scalar(0), dy), b!.shape) : undefined,
  ],
  MatMul: ({ g, inputs: [a, b], dy, needs }) => {
    const swap = (x: Value) =>
      g.transpose(
        x,
        x.shape.map((_, i) => (i < x.shape.length - 2 ? i : 2 * x.shape.length - 3 - i)),
      );
    return [needs(0) ? g.matMul(dy, swap(b!)) : undefined, needs(1) ? g.matMul(swap(a!), dy) : undefined];
  },
  // With Y = op(A) op(B): dA = dY op(B)ᵀ and dB = op(A)ᵀ dY, each transposed once more where A or B was.
  Gemm: ({ g, inputs: [a, b, c], attributes: { transA, transB }, dy, needs }) => [
    needs(0)
      ? (into) =>
          transA
            ? g.gemm(b!, dy, { transA: transB, transB: true, c: into })
            : g.gemm(dy, b!, { transB: !transB, c: into })
      : undefined,
    needs(1)
      ? (into) =>
          transB
            ? g.gemm(dy, a!, { transA: true, transB: transA, c: into })
            : g.gemm(a!, dy, { transA: !transA, c: into })
      : undefined,
    c !== undefined && needs(2) ? emitSumTo(g, dy, c.shape) : undefined,
  ],
  Transpose: ({ g, attributes: { permutation }, dy }) => [
    g.transpose(
      dy,
      permutation.map((_, i) => permutation.indexOf(i)),
    ),
  ],
  Reshape: ({ g, inputs: [x], dy }) => [g.reshape(dy, x!.shape)],
  Expand: ({ g, inputs: [x], dy }) => [emitSumTo(g, dy, x!.shape)],
  Concat: ({ g, inputs, attributes: { axis }, dy }) => {
    const sizes = inputs.map((input) => input.shape[axis]!);
    if (sizes.some((size) => typeof size !== 'number'))
      throw new Error(`Concat along a symbolic axis has no gradient (${inputs.map((input) => input.name).join(', ')})`);
    return g.split(dy, axis, sizes as number[]);
  },
  Split: ({ g, outputs, attributes: { axis }, dOutputs }) => [
    g.concat(
      outputs.map((y, i) => dOutputs[i] ?? g.zeros(y.shape)),
      axis,
    ),
  ],
  Slice: ({ g, inputs: [x], attributes: { axis, start, end }, dy }) => {
    const zeros = (size: number) => (size === 0 ? [] : [g.zeros(x!.shape.map((dim, i) => (i === axis ? size : dim)))]);
    return [g.concat([...zeros(start), dy, ...zeros((x!.shape[axis] as number) - end)], axis)];
  },
  Gather: ({ g, inputs: [data, indices], dy }) => {
    const count = g.size(indices!);
    const rows = g.reshape(dy, [count, ...data!.shape.slice(1)]);
    return [(into) => g.scatterAddRows(into ?? g.zeros(data!.shape), g.reshape(indices!, [count, 1]), rows), undefined];
  },
  GatherElements: ({ g, inputs: [data, indices], attributes: { axis }, dy }) => [
    (into) => g.scatterElements(into ?? g.zeros(data!.shape), indices!, dy, { axis, reduction: 'add' }),
    undefined,
  ],
  ScatterElements: ({ g, inputs: [, indices, updates], attributes: { axis, reduction }, dy, needs }) => [
    !needs(0)
      ? undefined
      : reduction === 'add'
        ? dy
        : g.scatterElements(dy, indices!, g.zeros(updates!.shape), { axis }),
    undefined,
    needs(2) ? g.gatherElements(dy, indices!, axis) : undefined,
  ],
  ScatterND: ({ g, inputs: [, indices, updates], attributes: { reduction }, dy, needs }) => {
    const rows = g.reshape(indices!, [indices!.shape[0]!]);
    if (needs(0) && reduction !== 'add') throw new Error('ScatterND without reduction has no gradient for its data');
    return [needs(0) ? dy : undefined, undefined, needs(2) ? g.reshape(g.gather(dy, rows), updates!.shape) : undefined];
  },
  ReduceSum: ({ g, inputs: [x], attributes, dy }) => [g.expand(keepReduced(g, dy, x!, attributes.axes), x!.shape)],
  ReduceMean: ({ g, inputs: [x], outputs: [y], attributes, dy }) => {
    const spread = g.expand(keepReduced(g, dy, x!, attributes.axes), x!.shape);
    return [g.mul(spread, meanFactor(g, x!, y!, attributes.axes))];
  },
  ReduceMax: { reason: 'only used on values that carry no gradient' },
  ReduceLogSumExp: ({ g, inputs: [x], outputs: [y], attributes: { axes }, dy }) => [
    g.mul(g.exp(g.sub(x!, keepReduced(g, y!, x!, axes))), keepReduced(g, dy, x!, axes)),
  ],
  ReduceSumSquare: ({ g, inputs: [x], attributes: { axes }, dy }) => [
    g.mul(x!, g.scale(keepReduced(g, dy, x!, axes), 2)),
  ],
  Softmax: ({ g, outputs: [y], attributes: { axis }, dy }) => [
    g.mul(y!, g.sub(dy, g.reduceSum(g.mul(dy, y!), [axis], true))),
  ],
  LogSoftmax: ({ g, outputs: [y], attributes: { axis }, dy }) => [
    g.sub(dy, g.mul(g.exp(y!), g.reduceSum(dy, [axis], true))),
  ],
  // With r = 1/rms(x), n = x r, t = dy · scale: dx = r (t - n mean(t n)), dscale = Σ dy n.
  RMSNormalization: ({ g, inputs: [x, scale], attributes: { epsilon }, dy, needs }) => {
    const last = x!.shape.length - 1;
    const width = x!.shape[last]!;
    if (typeof width !== 'number') throw new Error('RMSNormalization over a symbolic axis has no gradient');
    // Two passes, and yet half the time of ONNX Runtime's ReduceSumSquare.
    const meanSquare = g.scale(g.reduceSum(g.mul(x!, x!), [last], true), 1 / width);
    const r = g.reciprocal(g.sqrt(g.add(meanSquare, g.scalar(epsilon))));
    const n = g.mul(x!, r);
    const dScale = needs(1) ? emitSumTo(g, g.mul(dy, n), scale!.shape) : undefined;
    if (!needs(0)) return [undefined, dScale];
    const t = g.mul(dy, scale!);
    const projection = g.scale(g.reduceSum(g.mul(t, n), [last], true), 1 / width);
    return [g.mul(r, g.sub(t, g.mul(n, projection))), dScale];
  },
  // Back by the same angle; what the tables are scaled by scales the gradient too.
  RotaryEmbedding: ({ g, inputs: [, cos, sin], attributes: { heads }, dy, needs }) => {
    if (needs(1) || needs(2)) throw new Error('RotaryEmbedding has no gradient for its tables');
    return [g.rotaryEmbedding(dy, cos!, g.neg(sin!), heads), undefined, undefined];
  },
  TopK: ({ g, inputs: [x], outputs: [, indices], attributes: { axis }, dOutputs: [dValues] }) => [
    dValues === undefined
      ? undefined
      : (into) => g.scatterElements(into ?? g.zeros(x!.shape), indices!, dValues, { axis, reduction: 'add' }),
  ],
  ArgMax: notContinuous,
  Shape: notContinuous,
};

/** Gives a reduced value back its reduced axes, of length 1. */
function keepReduced(g: GraphBuilder, reduced: Value, x: Value, axes: readonly number[]): Value {
  const kept = x.shape.map((dim, i) => (axes.includes(i) ? 1 : dim));
  return shapesEqual(reduced.shape, kept) ? reduced : g.reshape(reduced, kept);
}

/**
 * 1 / (number of elements averaged over), from the shapes where they are known and from the data where they are not.
 */
function meanFactor(g: GraphBuilder, x: Value, y: Value, axes: readonly number[]): Value {
  const known = axes.map((axis) => x.shape[axis]!);
  if (known.every((dim) => typeof dim === 'number'))
    return g.scalar(1 / known.reduce((product, dim) => product * dim, 1));
  const ones = g.expand(g.scalar(1), x.shape);
  return keepReduced(g, g.reciprocal(g.reshape(g.reduceSum(ones, axes), y.shape)), x, axes);
}
