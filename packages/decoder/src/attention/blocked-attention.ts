import type { GraphBuilder, Value } from '@stillhouse/onnx-graph';
import { type Dim, multiplyDims } from '@stillhouse/tensor-types';
import { emitWeights, swap } from './softmax-attention.ts';

/**
 * Tensors that one operator cuts or joins: a shader of WebGPU has eight buffers, and a node with more of them fails.
 */
const MOST_PARTS = 4;

/** How many entries each of at most `MOST_PARTS` parts of `count` takes. */
const shareOut = (count: number): readonly number[] => {
  const parts = Math.min(MOST_PARTS, count);
  return Array.from(
    { length: parts },
    (_, i) => Math.floor(((i + 1) * count) / parts) - Math.floor((i * count) / parts),
  );
};

/** The `count` entries of `x` along axis 2, each with that axis. */
function splitApart(g: GraphBuilder, x: Value, count: number): readonly Value[] {
  if (count === 1) return [x];
  const sizes = shareOut(count);
  return g.split(x, 2, sizes).flatMap((part, i) => splitApart(g, part, sizes[i]!));
}

/** The reverse of `splitApart`. */
function joinTogether(g: GraphBuilder, parts: readonly Value[]): Value {
  if (parts.length === 1) return parts[0]!;
  let from = 0;
  const joined = shareOut(parts.length).map((size) => {
    from += size;
    return joinTogether(g, parts.slice(from - size, from));
  });
  return g.concat(joined, 2);
}

/** The bias of a batch whose queries attend block by block. */
export interface BlockedBias {
  /** S, the number of blocks of a row's columns. */
  readonly blocks: number;
  /** Q, the columns of a block. */
  readonly blockLength: Dim;
  /** Emits the bias of a block's queries on the keys up to the block's own: [B, 1, 1, Q, (block + 1)·Q]. */
  readonly emitBlock: (block: number) => Value;
}

/**
 * Causal softmax(QKᵀ + bias) V with memory for one block of queries at a time, [B, kvHeads, group·Q, keys], whatever
 * the length of the rows, and without the keys after a block, which are nearly half of them. The gradient computes a
 * block's weights P again, as Dao et al. 2022 (arXiv 2205.14135, algorithm 4) do.
 * @param queries [B, kvHeads, S, group, Q, headDim], scaled
 * @param keys [B, kvHeads, S, Q, headDim]
 * @param values [B, kvHeads, S, Q, headDim]
 * @returns mixed [B, kvHeads, S, group, Q, headDim]
 */
export function emitBlockedAttention(
  g: GraphBuilder,
  [queries, keys, values]: readonly [queries: Value, keys: Value, values: Value],
  { blocks, blockLength, emitBlock }: BlockedBias,
): Value {
  const [batch, kvHeadCount, , group, , headDim] = queries.shape as [Dim, Dim, Dim, number, Dim, number];
  const stacked = (x: Value, count: number) => g.reshape(x, [batch, kvHeadCount, count, blockLength, headDim]);
  const flat = (x: Value, count: number) =>
    g.reshape(x, [batch, kvHeadCount, multiplyDims(count, blockLength), headDim]);
  const queriesOf = (x: Value) => splitApart(g, x, blocks).map((part) => flat(part, group));
  /** What a block's queries see, the columns up to the block's own: [B, kvHeads, (block + 1)·Q, headDim]. */
  const seenBy = (block: number, x: Value) => flat(g.slice(x, 2, 0, block + 1), block + 1);
  const joinBlocks = (parts: readonly Value[]) =>
    joinTogether(
      g,
      parts.map((part) => g.reshape(part, [batch, kvHeadCount, 1, group, blockLength, headDim])),
    );
  const weightsOf = (block: number, q: Value, k: Value) => {
    const weights = emitWeights(g, q, swap(g, k), { bias: emitBlock(block), group });
    return g.reshape(weights, [...q.shape.slice(0, 3), multiplyDims(block + 1, blockLength)]);
  };

  const [mixed] = g.withGradient([queries, keys, values], () => {
    const mixedOf = queriesOf(queries).map((q, block) =>
      g.matMul(weightsOf(block, q, seenBy(block, keys)), seenBy(block, values)),
    );
    return {
      outputs: [joinBlocks(mixedOf)],
      gradient: ([dMixed]) => {
        const [allQueries, allDMixed] = [queriesOf(queries), queriesOf(dMixed!)];
        const [dQueries, dKeys, dValues] = [0, 1, 2].map(() => new Array<Value>(blocks)) as [Value[], Value[], Value[]];
        let [q, dO] = [allQueries.at(-1)!, allDMixed.at(-1)!];
        let [dKeysSeen, dValuesSeen]: (Value | undefined)[] = [];
        for (let block = blocks - 1; block >= 0; block--) {
          const [k, v] = [seenBy(block, keys), seenBy(block, values)];
          const rowSums = g.reduceSum(g.mul(dO, mixedOf[block]!), [3], true);
          const p = weightsOf(block, q, k);
          const dScores = g.mul(p, g.sub(g.matMul(dO, swap(g, v)), rowSums));
          const dQ = stacked(g.matMul(dScores, k), group);
          const addTo = (seen: Value | undefined, product: Value) => {
            const own = stacked(product, block + 1);
            return seen === undefined ? own : g.add(seen, own);
          };
          const dK = addTo(dKeysSeen, g.matMul(swap(g, dScores), q));
          const dV = addTo(dValuesSeen, g.matMul(swap(g, p), dO));
          if (block === 0) {
            [dQueries[0], dKeys[0], dValues[0]] = [dQ, dK, dV];
            break;
          }
          // The next block's operands come out of one tensor with all that this one gives, so that no engine can begin
          // the next before this one's weights have done their part and are gone.
          const next = [allQueries[block - 1]!, allDMixed[block - 1]!].map((x) => stacked(x, group));
          const given = g.concat([dQ, dK, dV, ...next], 2);
          const taken = g.split(given, 2, [group, block, 1, block, 1, group, group]);
          [dQueries[block], dKeysSeen, dKeys[block], dValuesSeen, dValues[block]] = taken as [
            Value,
            Value,
            Value,
            Value,
            Value,
          ];
          [q, dO] = [flat(taken[5]!, group), flat(taken[6]!, group)];
        }
        return [joinBlocks(dQueries), joinTogether(g, dKeys), joinTogether(g, dValues)];
      },
    };
  });
  return mixed!;
}
