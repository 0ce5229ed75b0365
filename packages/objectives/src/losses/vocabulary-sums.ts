import type { GraphBuilder, Value } from '@stillhouse/onnx-graph';

/** Rows up to this length are summed as they are. */
const LONGEST_PLAIN = 1024;
/** Blocks of about this many numbers, and the shortest and longest that a divisor of the length may make. */
const BLOCK = 256;
const [SHORTEST_BLOCK, LONGEST_BLOCK] = [64, 1024];

/** Stands for nothing in a sum of exponentials; finite, so that a row of nothing else stays finite too. */
export const REMOVED_SCORE = -1e30;

/**
 * log Σ exp over the last axis of [N, V]: [N, 1]. Block by block: ONNX Runtime adds up a row one number after the
 * other, and in float32 a sum of 151,936 exponentials one of which is 1 then comes out up to 8e-4 too small, as the
 * many small ones vanish beside it; in blocks it is right to 2e-6. By hand, as ReduceLogSumExp takes four times as
 * long.
 */
export function emitLogSumExp(g: GraphBuilder, x: Value): Value {
  const [logSum] = g.withGradient([x], () => {
    const largest = g.reduceMax(x, [1], true);
    const shares = g.exp(g.sub(x, largest));
    const sum = emitRowSum(g, shares);
    return {
      outputs: [g.add(largest, g.log(sum))],
      // What is subtracted and added again has no part in the gradient.
      gradient: ([dy]) => [g.mul(shares, g.div(dy!, sum))],
    };
  });
  return logSum!;
}

/** Σ over the last axis of [N, V], [N, 1], block by block as {@link emitLogSumExp}. */
export function emitRowSum(g: GraphBuilder, x: Value): Value {
  const blocks = splitRows(g, x);
  return g.reduceSum(blocks === x ? x : g.reduceSum(blocks, [2]), [1], true);
}

/** [N, blocks, block], filled up with zeros where the length has no suitable divisor; short rows as they are. */
function splitRows(g: GraphBuilder, x: Value): Value {
  const [rows, length] = x.shape;
  if (typeof length !== 'number' || length <= LONGEST_PLAIN) return x;
  const block = findBlock(length);
  const missing = (block - (length % block)) % block;
  const whole = missing === 0 ? x : g.concat([x, g.zeros([rows!, missing])], 1);
  return g.reshape(whole, [rows!, (length + missing) / block, block]);
}

/** The divisor of a length nearest to BLOCK, or BLOCK itself where none is near. */
function findBlock(length: number): number {
  let best: number | undefined;
  for (let block = SHORTEST_BLOCK; block <= LONGEST_BLOCK; block++) {
    const distance = Math.abs(Math.log(block / BLOCK));
    if (length % block === 0 && (best === undefined || distance < Math.abs(Math.log(best / BLOCK)))) best = block;
  }
  return best ?? BLOCK;
}
