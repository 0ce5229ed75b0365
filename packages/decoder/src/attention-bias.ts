import type { GraphBuilder, Value } from '@stillhouse/onnx-graph';

/**
 * What is added to a forbidden attention score. Its exponential is zero beside any real score, and unlike minus
 * infinity it leaves a row without an allowed key (padding) finite.
 */
const FORBIDDEN_SCORE = -1e30;

/**
 * Causal attention inside segments: column t sees column s when s <= t and both carry the same segment id. Rows
 * packed side by side have different ids and never see each other; padding is a segment of its own.
 * @param segmentIds int32 [B, T]
 * @param columns int32 [T]: 0, 1, ..., T - 1
 * @returns [B, 1, 1, T, T], to be added to scores
 */
export function emitSegmentBias(g: GraphBuilder, segmentIds: Value, columns: Value): Value {
  const [batch, length] = segmentIds.shape;
  const sameSegment = g.equal(
    g.reshape(segmentIds, [batch!, 1, 1, length!, 1]),
    g.reshape(segmentIds, [batch!, 1, 1, 1, length!]),
  );
  const isPast = g.greaterOrEqual(g.reshape(columns, [length!, 1]), g.reshape(columns, [1, length!]));
  return g.where(g.and(sameSegment, isPast), g.scalar(0), g.scalar(FORBIDDEN_SCORE));
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
