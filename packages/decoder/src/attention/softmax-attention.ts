import type { GraphBuilder, Value } from '@stillhouse/onnx-graph';
import { multiplyDims } from '@stillhouse/tensor-types';

/**
 * A score so far below its row's largest counts as this far: its share is 1e-26, nothing to float32 and to float64.
 * Left where a bias puts it, at -1e30, the softmax's exponential of it would be a subnormal number, and with half of
 * the keys forbidden ONNX Runtime's softmax then takes four times as long.
 */
const LOWEST_RELATIVE_SCORE = -60;

/** The transpose of the last two of four axes. */
export const swap = (g: GraphBuilder, x: Value) => g.transpose(x, [0, 1, 3, 2]);

/** softmax(QKᵀ + bias) [B, kvHeads, group, T, keys]; shapes as {@link emitSoftmaxAttention} has them. */
export function emitWeights(
  g: GraphBuilder,
  queries: Value,
  keysTransposed: Value,
  { bias, group }: { readonly bias: Value; readonly group: number },
): Value {
  const [batch, kvHeadCount] = queries.shape;
  const [length, keyCount] = bias.shape.slice(3);
  const apart = [batch!, kvHeadCount!, group, length!, keyCount!];
  const scores = g.add(g.reshape(g.matMul(queries, keysTransposed), apart), bias);
  const lowest = g.add(g.reduceMax(scores, [4], true), g.scalar(LOWEST_RELATIVE_SCORE));
  return g.softmax(g.max(scores, lowest), 4);
}

/**
 * softmax(QKᵀ + bias) V. As in Dao et al. 2022 (arXiv 2205.14135, eq. 4) the gradient of the softmax takes its row sums
 * Σ P dP from Σ O dO, which passes over headDim numbers a query instead of over all keys.
 * @param queries [B, kvHeads, group·T, headDim], scaled; the queries of a group below each other
 * @param keysTransposed [B, kvHeads, headDim, keys]
 * @param values [B, kvHeads, keys, headDim]
 * @param bias [B, 1, 1, T, keys]
 * @returns attention P [B, kvHeads, group, T, keys] and mixed [B, kvHeads, group·T, headDim]
 */
export function emitSoftmaxAttention(
  g: GraphBuilder,
  [queries, keysTransposed, values]: readonly [queries: Value, keysTransposed: Value, values: Value],
  { bias, group }: { readonly bias: Value; readonly group: number },
): { readonly attention: Value; readonly mixed: Value } {
  const [batch, kvHeadCount] = queries.shape;
  const [length, keyCount] = bias.shape.slice(3);
  const joined = [batch!, kvHeadCount!, multiplyDims(group, length!), keyCount!];
  const [mixed, attention] = g.withGradient([queries, keysTransposed, values], () => {
    const attention = emitWeights(g, queries, keysTransposed, { bias, group });
    const p = g.reshape(attention, joined);
    const mixed = g.matMul(p, values);
    return {
      outputs: [mixed, attention],
      gradient: ([dMixed, dAttention]) => {
        const fromMixed = dMixed && g.matMul(dMixed, swap(g, values));
        const fromOutside = dAttention && g.reshape(dAttention, joined);
        const dP = fromMixed && fromOutside ? g.add(fromMixed, fromOutside) : (fromMixed ?? fromOutside)!;
        const rowSums =
          fromOutside === undefined
            ? g.reduceSum(g.mul(dMixed!, mixed), [3], true)
            : g.reduceSum(g.mul(dP, p), [3], true);
        const dScores = g.mul(p, g.sub(dP, rowSums));
        return [
          g.matMul(dScores, swap(g, keysTransposed)),
          g.matMul(swap(g, queries), dScores),
          dMixed && g.matMul(swap(g, p), dMixed),
        ];
      },
    };
  });
  return { attention: attention!, mixed: mixed! };
}
