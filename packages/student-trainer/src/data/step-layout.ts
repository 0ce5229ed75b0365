import type { ModelConfig } from '@stillhouse/checkpoint';
import { packSequences, padSequences, type TokenBatch } from '@stillhouse/model-runner';

/** How a step's rows are laid out: several side by side where they fit, or one a row, padded to the longest. */
export type Batching = 'packed' | 'bucketed';

/**
 * Attention's work against that of matrix products of as many multiplications: scores pass through bias, softmax and
 * masks too.
 */
const ATTENTION_OVERHEAD = 1.5;

/**
 * What attention over one more column costs a token, as a share of all else that a token costs: the multiplications of
 * scores and values for a pair of positions over those of the layer's matrices. Measured factors: docs/log.md. Rows
 * that attend in blocks are charged for all pairs too: nearly half of the scores are not computed, but the others take
 * longer, as their bias is made beside them and the gradient computes them again.
 */
export function measureColumnCost(config: ModelConfig): number {
  const { hiddenSize, intermediateSize, headCount, kvHeadCount, headDim } = config;
  const matrices = hiddenSize * (2 * (headCount + kvHeadCount) * headDim + 3 * intermediateSize);
  return (ATTENTION_OVERHEAD * 2 * headCount * headDim) / matrices;
}

/**
 * Splits a step's rows into at most `parts` micro-batches of about equal cost, each of rows of like length, so that
 * little of it is padding. Which rows a step has is not touched.
 * @param columnCost of attention, as {@link measureColumnCost} has it
 * @returns groups from the shortest rows to the longest; within a group in the order of lengths, then as given
 */
export function groupByLength(
  rows: readonly number[],
  lengths: ArrayLike<number>,
  parts: number,
  columnCost: number,
): readonly (readonly number[])[] {
  const costOf = (row: number) => lengths[row]! * (1 + columnCost * lengths[row]!);
  const total = rows.reduce((sum, row) => sum + costOf(row), 0);
  const groups: number[][] = Array.from({ length: parts }, () => []);
  let before = 0;
  // The sort is stable: rows of one length stay in the order of the data.
  for (const row of [...rows].sort((a, b) => lengths[a]! - lengths[b]!)) {
    const middle = before + costOf(row) / 2;
    groups[Math.min(parts - 1, Math.floor((middle / total) * parts))]!.push(row);
    before += costOf(row);
  }
  return groups.filter((group) => group.length > 0);
}

/** A micro-batch's rows as a rectangle. */
export const layOut = (sequences: readonly Int32Array[], batching: Batching, columnCost: number): TokenBatch =>
  batching === 'packed' ? packSequences(sequences, columnCost) : padSequences(sequences);
