import { StillhouseError } from '@stillhouse/errors';
import { type Dim, type Shape, scaleOf, symbolsOf } from '@stillhouse/tensor-types';
import type { GraphBuilder } from '../graph/builder.ts';
import type { Value } from '../graph/types.ts';

interface ShapeOperands {
  readonly symbols: Map<string, Value>;
  readonly shapes: Map<string, Value>;
}

/** What was emitted into a graph, so that each size and each shape is computed once. */
const emitted = new WeakMap<GraphBuilder, ShapeOperands>();

/**
 * The int64 tensor that holds the shape `target`, with nodes that compute it where only a run knows it; at most one
 * entry may be -1 when `mayInfer`.
 * @throws StillhouseError GRAPH_UNKNOWN_SYMBOL where no input has one of its symbols as a dimension
 */
export function emitShapeOperand(g: GraphBuilder, target: Shape, mayInfer: boolean): Value {
  const symbolic = target.filter((dim) => typeof dim === 'string');
  if (symbolic.length === 0) return g.integers(target as readonly number[]);
  if (symbolic.length === 1 && mayInfer && !target.includes(0))
    return g.integers(target.map((dim) => (typeof dim === 'string' ? -1 : dim)));
  const known = emitted.get(g) ?? { symbols: new Map<string, Value>(), shapes: new Map<string, Value>() };
  emitted.set(g, known);
  const key = target.join();
  const shape =
    known.shapes.get(key) ??
    g.concat(
      target.map((dim) => emitSize(g, known, dim)),
      0,
    );
  known.shapes.set(key, shape);
  return shape;
}

function emitSize(g: GraphBuilder, { symbols }: ShapeOperands, dim: Dim): Value {
  const factors = symbolsOf(dim).map((symbol) => {
    const size = symbols.get(symbol) ?? emitSymbol(g, symbol);
    symbols.set(symbol, size);
    return size;
  });
  const scale = scaleOf(dim);
  if (factors.length === 0 || scale !== 1) factors.push(g.integers([scale]));
  return factors.reduce((product, factor) => g.mul(product, factor));
}

/** The value of a symbol at run time as int64[1], read off a graph input that has it as a dimension. */
function emitSymbol(g: GraphBuilder, symbol: string): Value {
  for (const input of g.inputs) {
    const axis = input.shape.indexOf(symbol);
    if (axis >= 0) return g.apply('Shape', [input], { start: axis, end: axis + 1 })[0]!;
  }
  throw new StillhouseError({
    code: 'GRAPH_UNKNOWN_SYMBOL',
    where: `graph ${g.name}`,
    problem: `no input has a dimension ${symbol}`,
    remedy: `Add an input that has ${symbol} as a dimension of its own`,
  });
}
