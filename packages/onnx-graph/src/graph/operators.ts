import { StillhouseError } from '@stillhouse/errors';
import {
  broadcastShapes,
  type Dim,
  type Dtype,
  formatShape,
  multiplyDims,
  type Shape,
  shapesEqual,
} from '@stillhouse/tensor-types';
import { isFloat, type OperatorAttributes, type OperatorName, type TensorType } from './types.ts';

type Inputs = readonly (TensorType | undefined)[];

/** What the builder must know of an operator: how many inputs it takes and the types of its outputs. */
export interface OperatorSpec<Attributes> {
  /** Least and most inputs. Shape and axes inputs that come from attributes are not counted. */
  readonly arity: readonly [number, number];
  readonly infer: (inputs: Inputs, attributes: Attributes, fail: Fail) => readonly TensorType[];
}

type Fail = (problem: string, expected?: string, got?: string) => never;

function reject(where: string): Fail {
  return (problem, expected, got) => {
    throw new StillhouseError({
      code: 'GRAPH_TYPE_ERROR',
      where,
      problem,
      ...(expected === undefined ? {} : { expected }),
      ...(got === undefined ? {} : { got }),
    });
  };
}

const describe = (type: TensorType | undefined) =>
  type === undefined ? 'nothing' : `${type.dtype}${formatShape(type.shape)}`;

function need(inputs: Inputs, i: number, fail: Fail): TensorType {
  return inputs[i] ?? fail(`input ${i} is missing`);
}

function sameDtype(inputs: Inputs, fail: Fail, allowed: (dtype: Dtype) => boolean = () => true): Dtype {
  const first = need(inputs, 0, fail).dtype;
  if (!allowed(first)) fail('the operator does not take this type', 'another element type', first);
  if (inputs.some((input) => input !== undefined && input.dtype !== first)) {
    fail('operand types do not fit', `all ${first}`, inputs.map(describe).join(', '));
  }
  return first;
}

const notBool = (dtype: Dtype) => dtype !== 'bool';

function broadcastAll(inputs: Inputs, fail: Fail): Shape {
  let shape: Shape = [];
  for (const input of inputs) {
    shape =
      broadcastShapes(shape, input?.shape ?? []) ??
      fail('shapes do not broadcast', 'equal dimensions or 1', inputs.map(describe).join(' and '));
  }
  return shape;
}

const elementwise = (arity: number): OperatorSpec<OperatorAttributes['Add']> => ({
  arity: [arity, arity],
  infer: (inputs, _, fail) => [{ dtype: sameDtype(inputs, fail, notBool), shape: broadcastAll(inputs, fail) }],
});

const floatUnary: OperatorSpec<OperatorAttributes['Exp']> = {
  arity: [1, 1],
  infer: (inputs, _, fail) => [{ dtype: sameDtype(inputs, fail, isFloat), shape: need(inputs, 0, fail).shape }],
};

const comparison: OperatorSpec<OperatorAttributes['Equal']> = {
  arity: [2, 2],
  infer: (inputs, _, fail) => {
    sameDtype(inputs, fail);
    return [{ dtype: 'bool', shape: broadcastAll(inputs, fail) }];
  },
};

const logical = (arity: number): OperatorSpec<OperatorAttributes['And']> => ({
  arity: [arity, arity],
  infer: (inputs, _, fail) => [
    { dtype: sameDtype(inputs, fail, (dtype) => dtype === 'bool'), shape: broadcastAll(inputs, fail) },
  ],
});

const reduction: OperatorSpec<OperatorAttributes['ReduceSum']> = {
  arity: [1, 1],
  infer: (inputs, { axes, keepDims }, fail) => {
    const { dtype, shape } = need(inputs, 0, fail);
    if (axes.some((axis) => axis < 0 || axis >= shape.length))
      fail('axis out of range', `0 to ${shape.length - 1}`, String(axes));
    const kept = shape.map((dim, i) => (axes.includes(i) ? 1 : dim));
    return [{ dtype, shape: keepDims ? kept : shape.filter((_, i) => !axes.includes(i)) }];
  },
};

const alongAxis: OperatorSpec<OperatorAttributes['Softmax']> = {
  arity: [1, 1],
  infer: (inputs, { axis }, fail) => {
    const { shape } = need(inputs, 0, fail);
    checkAxis(axis, shape, fail);
    return [{ dtype: sameDtype(inputs, fail, isFloat), shape }];
  },
};

function checkAxis(axis: number, shape: Shape, fail: Fail): void {
  if (axis < 0 || axis >= shape.length) fail('axis out of range', `0 to ${shape.length - 1}`, String(axis));
}

const replaceAt = (shape: Shape, axis: number, dim: Dim): Shape => shape.map((old, i) => (i === axis ? dim : old));

function checkIndices(type: TensorType, fail: Fail): void {
  if (type.dtype !== 'int64') fail('indices have the wrong type', 'int64', type.dtype);
}

/** Shape and dtype inference, one entry an operator, exhaustive by type. */
export const OPERATORS: { readonly [Name in OperatorName]: OperatorSpec<OperatorAttributes[Name]> } = {
  Add: elementwise(2),
  Sub: elementwise(2),
  Mul: elementwise(2),
  Div: elementwise(2),
  Max: elementwise(2),
  Min: elementwise(2),
  Neg: elementwise(1),
  Abs: elementwise(1),
  Exp: floatUnary,
  Log: floatUnary,
  Sqrt: floatUnary,
  Reciprocal: floatUnary,
  Sigmoid: floatUnary,
  Cos: floatUnary,
  Sin: floatUnary,
  Round: floatUnary,
  Identity: { arity: [1, 1], infer: (inputs, _, fail) => [need(inputs, 0, fail)] },
  Cast: { arity: [1, 1], infer: (inputs, { to }, fail) => [{ dtype: to, shape: need(inputs, 0, fail).shape }] },
  BitCast: { arity: [1, 1], infer: (inputs, { to }, fail) => [{ dtype: to, shape: need(inputs, 0, fail).shape }] },
  Equal: comparison,
  Less: comparison,
  GreaterOrEqual: comparison,
  And: logical(2),
  Not: logical(1),
  Where: {
    arity: [3, 3],
    infer: (inputs, _, fail) => {
      if (need(inputs, 0, fail).dtype !== 'bool') fail('the condition has the wrong type', 'bool', describe(inputs[0]));
      return [{ dtype: sameDtype(inputs.slice(1), fail), shape: broadcastAll(inputs, fail) }];
    },
  },
  MatMul: {
    arity: [2, 2],
    infer: (inputs, _, fail) => {
      const dtype = sameDtype(inputs, fail, isFloat);
      const a = need(inputs, 0, fail).shape;
      const b = need(inputs, 1, fail).shape;
      const fits =
        a.length >= 2 && a.length === b.length && a.at(-1) === b.at(-2) && shapesEqual(a.slice(0, -2), b.slice(0, -2));
      if (!fits)
        fail(
          'matrices do not fit',
          '[..., M, K] and [..., K, N] with equal leading dimensions',
          inputs.map(describe).join(' and '),
        );
      return [{ dtype, shape: [...a.slice(0, -1), b.at(-1)!] }];
    },
  },
  Gemm: {
    arity: [2, 3],
    infer: (inputs, { transA, transB }, fail) => {
      const dtype = sameDtype(inputs, fail, isFloat);
      const a = need(inputs, 0, fail).shape;
      const b = need(inputs, 1, fail).shape;
      if (a.length !== 2 || b.length !== 2)
        fail('operands must be matrices', 'rank 2', inputs.map(describe).join(' and '));
      const [rows, inner] = transA ? [a[1]!, a[0]!] : [a[0]!, a[1]!];
      const [innerB, columns] = transB ? [b[1]!, b[0]!] : [b[0]!, b[1]!];
      if (inner !== innerB)
        fail('inner dimensions differ', `K = ${inner}`, `K = ${innerB} (${inputs.map(describe).join(' and ')})`);
      const shape = [rows, columns];
      const c = inputs[2]?.shape;
      if (c !== undefined && (c.length > 2 || !shapesEqual(broadcastShapes(c, shape) ?? [], shape))) {
        fail('C does not broadcast to the product', formatShape(shape), describe(inputs[2]));
      }
      return [{ dtype, shape }];
    },
  },
  Transpose: {
    arity: [1, 1],
    infer: (inputs, { permutation }, fail) => {
      const { dtype, shape } = need(inputs, 0, fail);
      const valid =
        [...permutation].sort((x, y) => x - y).every((axis, i) => axis === i) && permutation.length === shape.length;
      if (!valid) fail('not a permutation of the axes', `${shape.length} axes`, String(permutation));
      return [{ dtype, shape: permutation.map((axis) => shape[axis]!) }];
    },
  },
  Reshape: {
    arity: [1, 1],
    infer: (inputs, { target }, fail) => {
      const { dtype, shape } = need(inputs, 0, fail);
      if (multiplyDims(...shape) !== multiplyDims(...target))
        fail(
          'the number of elements changes',
          `${formatShape(shape)} = ${multiplyDims(...shape)}`,
          `${formatShape(target)} = ${multiplyDims(...target)}`,
        );
      return [{ dtype, shape: target }];
    },
  },
  Expand: {
    arity: [1, 1],
    infer: (inputs, { target }, fail) => {
      const { dtype, shape } = need(inputs, 0, fail);
      if (!shapesEqual(broadcastShapes(shape, target) ?? [], target))
        fail('the shape does not expand', formatShape(target), formatShape(shape));
      return [{ dtype, shape: target }];
    },
  },
  Concat: {
    arity: [1, Number.POSITIVE_INFINITY],
    infer: (inputs, { axis }, fail) => {
      const dtype = sameDtype(inputs, fail);
      const { shape } = need(inputs, 0, fail);
      checkAxis(axis, shape, fail);
      for (const input of inputs) {
        if (!shapesEqual(replaceAt(input!.shape, axis, 0), replaceAt(shape, axis, 0)))
          fail('shapes differ off the axis', formatShape(shape), describe(input));
      }
      const along = inputs.map((input) => input!.shape[axis]!);
      const numbers = along.filter((dim) => typeof dim === 'number').reduce((sum, dim) => sum + dim, 0);
      const symbols = along.filter((dim) => typeof dim === 'string');
      const total = symbols.length === 0 ? numbers : [...symbols, ...(numbers === 0 ? [] : [numbers])].join('+');
      return [{ dtype, shape: replaceAt(shape, axis, total) }];
    },
  },
  Split: {
    arity: [1, 1],
    infer: (inputs, { axis, sizes }, fail) => {
      const { dtype, shape } = need(inputs, 0, fail);
      checkAxis(axis, shape, fail);
      const total = sizes.reduce((sum, size) => sum + size, 0);
      if (total !== shape[axis]) fail('the parts do not add up', String(shape[axis]), sizes.join(' + '));
      return sizes.map((size) => ({ dtype, shape: replaceAt(shape, axis, size) }));
    },
  },
  Slice: {
    arity: [1, 1],
    infer: (inputs, { axis, start, end }, fail) => {
      const { dtype, shape } = need(inputs, 0, fail);
      checkAxis(axis, shape, fail);
      const size = shape[axis]!;
      if (typeof size !== 'number' || start < 0 || end <= start || end > size)
        fail('the slice is not inside the axis', `0 <= start < end <= ${size}`, `${start} to ${end}`);
      return [{ dtype, shape: replaceAt(shape, axis, end - start) }];
    },
  },
  Gather: {
    arity: [2, 2],
    infer: (inputs, _, fail) => {
      const data = need(inputs, 0, fail);
      const indices = need(inputs, 1, fail);
      checkIndices(indices, fail);
      return [{ dtype: data.dtype, shape: [...indices.shape, ...data.shape.slice(1)] }];
    },
  },
  GatherElements: {
    arity: [2, 2],
    infer: (inputs, { axis }, fail) => {
      const data = need(inputs, 0, fail);
      const indices = need(inputs, 1, fail);
      checkIndices(indices, fail);
      checkAxis(axis, data.shape, fail);
      if (!shapesEqual(replaceAt(indices.shape, axis, 0), replaceAt(data.shape, axis, 0)))
        fail('indices do not fit the data off the axis', formatShape(data.shape), formatShape(indices.shape));
      return [{ dtype: data.dtype, shape: indices.shape }];
    },
  },
  ScatterElements: {
    arity: [3, 3],
    infer: (inputs, { axis }, fail) => {
      const data = need(inputs, 0, fail);
      const indices = need(inputs, 1, fail);
      const updates = need(inputs, 2, fail);
      checkIndices(indices, fail);
      checkAxis(axis, data.shape, fail);
      if (!shapesEqual(indices.shape, updates.shape) || data.dtype !== updates.dtype)
        fail('updates do not fit', `${data.dtype}${formatShape(indices.shape)}`, describe(updates));
      return [{ dtype: data.dtype, shape: data.shape }];
    },
  },
  ScatterND: {
    arity: [3, 3],
    infer: (inputs, _, fail) => {
      const data = need(inputs, 0, fail);
      const indices = need(inputs, 1, fail);
      const updates = need(inputs, 2, fail);
      checkIndices(indices, fail);
      if (indices.shape.length !== 2 || indices.shape[1] !== 1)
        fail('only whole rows are scattered', 'indices [N, 1]', formatShape(indices.shape));
      const shape = [indices.shape[0]!, ...data.shape.slice(1)];
      if (!shapesEqual(updates.shape, shape) || data.dtype !== updates.dtype)
        fail('updates do not fit', `${data.dtype}${formatShape(shape)}`, describe(updates));
      return [{ dtype: data.dtype, shape: data.shape }];
    },
  },
  ReduceSum: reduction,
  ReduceMean: reduction,
  ReduceMax: reduction,
  ReduceLogSumExp: reduction,
  ReduceSumSquare: reduction,
  Softmax: alongAxis,
  LogSoftmax: alongAxis,
  RMSNormalization: {
    arity: [2, 2],
    infer: (inputs, _, fail) => {
      const x = need(inputs, 0, fail);
      const scale = need(inputs, 1, fail);
      if (!shapesEqual(scale.shape, x.shape.slice(-1)))
        fail('the scale does not fit', formatShape(x.shape.slice(-1)), formatShape(scale.shape));
      return [{ dtype: sameDtype(inputs, fail, isFloat), shape: x.shape }];
    },
  },
  RotaryEmbedding: {
    arity: [3, 3],
    infer: (inputs, { heads }, fail) => {
      const dtype = sameDtype(inputs, fail, isFloat);
      const x = need(inputs, 0, fail).shape;
      const [batch, length, width] = x;
      const half = typeof width === 'number' ? width / heads / 2 : Number.NaN;
      if (x.length !== 3 || !Number.isInteger(half))
        fail('heads do not fit', `[B, T, ${heads} heads of an even width]`, describe(inputs[0]));
      const table = [batch!, length!, half];
      if (inputs.slice(1).some((one) => !shapesEqual(one!.shape, table)))
        fail('tables do not fit', formatShape(table), inputs.slice(1).map(describe).join(' and '));
      return [{ dtype, shape: x }];
    },
  },
  TopK: {
    arity: [1, 1],
    infer: (inputs, { axis, k }, fail) => {
      const { dtype, shape } = need(inputs, 0, fail);
      checkAxis(axis, shape, fail);
      const length = shape[axis]!;
      if (!Number.isInteger(k) || k < 1 || (typeof length === 'number' && k > length))
        fail('k is out of range', `1 to ${length}`, String(k));
      return [
        { dtype, shape: replaceAt(shape, axis, k) },
        { dtype: 'int64', shape: replaceAt(shape, axis, k) },
      ];
    },
  },
  ArgMax: {
    arity: [1, 1],
    infer: (inputs, { axis }, fail) => {
      const { shape } = need(inputs, 0, fail);
      checkAxis(axis, shape, fail);
      return [{ dtype: 'int64', shape: shape.filter((_, i) => i !== axis) }];
    },
  },
  Shape: {
    arity: [1, 1],
    infer: (inputs, { start, end }, fail) => {
      const { shape } = need(inputs, 0, fail);
      if (start < 0 || end > shape.length || start >= end)
        fail('no such dimensions', `within 0 to ${shape.length}`, `${start} to ${end}`);
      return [{ dtype: 'int64', shape: [end - start] }];
    },
  },
};

/**
 * The output types of `op` applied to inputs of the given types.
 * @throws StillhouseError GRAPH_TYPE_ERROR, naming `where`
 */
export function inferTypes<Name extends OperatorName>(
  op: Name,
  inputs: Inputs,
  attributes: OperatorAttributes[Name],
  where: string,
): readonly TensorType[] {
  const spec = OPERATORS[op];
  const fail = reject(where);
  const [least, most] = spec.arity;
  if (inputs.length < least || inputs.length > most)
    fail('wrong number of inputs', least === most ? String(least) : `${least} to ${most}`, String(inputs.length));
  return spec.infer(inputs, attributes, fail);
}
