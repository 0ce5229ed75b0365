import { type FloatDtype, GraphBuilder, type Value } from '@stillhouse/onnx-graph';
import { type Dim, multiplyDims } from '@stillhouse/tensor-types';

/**
 * What is added to a forbidden attention score. Its exponential is zero beside any real score, and unlike minus
 * infinity it leaves a row without an allowed key (padding) finite.
 */
const FORBIDDEN_SCORE = -1e30;

/**
 * Some columns of rows: the segment that each belongs to, int32 with B · count entries, and its place, int32 with
 * count.
 */
interface Columns {
  readonly segmentIds: Value;
  readonly columns: Value;
  readonly count: Dim;
}

/** A query sees the keys of its own segment that do not come after it. @returns [B, 1, 1, queries, keys] */
function emitCausalBias(g: GraphBuilder, queries: Columns, keys: Columns): Value {
  const batch = queries.segmentIds.shape[0]!;
  const sameSegment = g.equal(
    g.reshape(queries.segmentIds, [batch, 1, 1, queries.count, 1]),
    g.reshape(keys.segmentIds, [batch, 1, 1, 1, keys.count]),
  );
  const isPast = g.greaterOrEqual(
    g.reshape(queries.columns, [queries.count, 1]),
    g.reshape(keys.columns, [1, keys.count]),
  );
  return g.where(g.and(sameSegment, isPast), g.scalar(0), g.scalar(FORBIDDEN_SCORE));
}

/**
 * Causal attention inside segments: column t sees column s when s <= t and both carry the same segment id. Rows
 * packed side by side have different ids and never see each other; padding is a segment of its own.
 * @param segmentIds int32 [B, T]
 * @param columns int32 [T]: 0, 1, ..., T - 1
 * @returns [B, 1, 1, T, T], to be added to scores
 */
export function emitSegmentBias(g: GraphBuilder, segmentIds: Value, columns: Value): Value {
  const all = { segmentIds, columns, count: columns.shape[0]! };
  return emitCausalBias(g, all, all);
}

/**
 * The rows of {@link emitSegmentBias} that belong to one block of queries, and of their columns those up to the block's
 * last.
 * @param segmentIds int32 [B, S, Q]: S blocks of Q columns
 * @param columns int32 [S, Q]: 0, 1, ..., S·Q - 1
 * @returns [B, 1, 1, Q, (block + 1)·Q]
 */
export function emitBlockBias(g: GraphBuilder, segmentIds: Value, columns: Value, block: number): Value {
  const [, blocks, length] = segmentIds.shape as [Dim, number, Dim];
  const seenOf = (x: Value, axis: number) =>
    block + 1 === blocks ? x : g.split(x, axis, [block + 1, blocks - block - 1])[0]!;
  const ownOf = (seen: Value, axis: number) => (block === 0 ? seen : g.split(seen, axis, [block, 1])[1]!);
  const [segments, places] = [seenOf(segmentIds, 1), seenOf(columns, 0)];
  return emitCausalBias(
    g,
    { segmentIds: ownOf(segments, 1), columns: ownOf(places, 0), count: length },
    { segmentIds: segments, columns: places, count: multiplyDims(block + 1, length) },
  );
}

/**
 * Attention over a KV cache: a query at position p sees slots 0 to p.
 * @param positionIds int32 [B, T]
 * @param slots int32 [S]: 0, 1, ..., S - 1
 * @returns [B, 1, 1, T, S]
 */
export function emitCacheBias(g: GraphBuilder, positionIds: Value, slots: Value): Value {
  const [batch, length] = positionIds.shape;
  const isPast = g.greaterOrEqual(g.reshape(positionIds, [batch!, 1, 1, length!, 1]), slots);
  return g.where(isPast, g.scalar(0), g.scalar(FORBIDDEN_SCORE));
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
