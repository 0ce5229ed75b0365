import { StillhouseError } from '@stillhouse/errors';
import { broadcastShapes, formatShape, type Shape, shapesEqual } from '@stillhouse/tensor-types';
import type { GraphBuilder } from '../graph/builder.ts';
import { isFloat, type Value } from '../graph/types.ts';

/**
 * Sums `x` down to `shape`, undoing a broadcast.
 * @throws StillhouseError GRAPH_TYPE_ERROR where `shape` does not broadcast to that of `x`
 */
export function emitSumTo(g: GraphBuilder, x: Value, shape: Shape): Value {
  if (shapesEqual(x.shape, shape)) return x;
  if (!shapesEqual(broadcastShapes(x.shape, shape) ?? [], x.shape)) {
    throw new StillhouseError({
      code: 'GRAPH_TYPE_ERROR',
      where: `graph ${g.name}`,
      problem: 'cannot undo a broadcast',
      expected: formatShape(shape),
      got: formatShape(x.shape),
    });
  }
  const extra = x.shape.length - shape.length;
  const axes = x.shape.flatMap((dim, i) => (i < extra || (shape[i - extra] === 1 && dim !== 1) ? [i] : []));
  if (axes.length === 0) return g.reshape(x, shape);
  return g.reshape(isColumnSum(x, axes) ? sumColumns(g, x) : g.reduceSum(x, axes, true), shape);
}

/**
 * The sum of a matrix's rows, [1, D], as a product with ones: on two threads ONNX Runtime's ReduceSum over the first
 * axis takes ten times as long.
 */
const sumColumns = (g: GraphBuilder, x: Value) => g.gemm(g.expand(g.scalar(1), [1, x.shape[0]!]), x);

const isColumnSum = ({ shape, dtype }: Value, axes: readonly number[]) =>
  shape.length === 2 && axes.length === 1 && axes[0] === 0 && isFloat(dtype);
