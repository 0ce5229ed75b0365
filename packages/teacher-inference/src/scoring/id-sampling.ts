import type { SampledLabels } from '@stillhouse/teacher-cache';
import { BLOCK_IDS } from './distribution-graph.ts';

/** Where the draws of some positions fall: a block of ids each, and how far into its weight. */
export interface BlockDraws {
  /** [positions, draws] numbers of blocks, counted through all positions. */
  readonly blocks: Int32Array;
  /** [positions, draws] share of the block's weight that comes before the draw, in [0, 1). */
  readonly shares: Float64Array;
  /** The distinct blocks, ascending. */
  readonly wanted: readonly number[];
}

/**
 * Inverse transform sampling, first half: each uniform number picks the block in which it falls when the weights of a
 * position stand side by side. Sums are in float64, so an id's probability is off by no more than its own weight in
 * float32 is and the rounding of its block's sum: some 1e-6 of itself, however small it is.
 * @param blockSums [positions, blocks], finite, with a sum above 0 at each position
 * @param uniform [positions, draws] in [0, 1)
 */
export function drawBlocks(blockSums: Float32Array, blockCount: number, uniform: Float64Array): BlockDraws {
  const positions = blockSums.length / blockCount;
  const draws = positions === 0 ? 0 : uniform.length / positions;
  const blocks = new Int32Array(uniform.length);
  const shares = new Float64Array(uniform.length);
  const cumulative = new Float64Array(blockCount);
  for (let position = 0; position < positions; position++) {
    const first = position * blockCount;
    let total = 0;
    for (let block = 0; block < blockCount; block++) cumulative[block] = total += blockSums[first + block]!;
    for (let i = position * draws; i < (position + 1) * draws; i++) {
      const at = uniform[i]! * total;
      const block = findFirstAbove(cumulative, at);
      const weight = blockSums[first + block]!;
      blocks[i] = first + block;
      // Rounding may put a draw at the very end of its block.
      shares[i] = Math.min(1 - 2 ** -53, Math.max(0, (at - (cumulative[block]! - weight)) / weight));
    }
  }
  return { blocks, shares, wanted: [...new Set(blocks)].sort((a, b) => a - b) };
}

/** The first place whose cumulative weight is above `at`; the last one with any weight if rounding leaves none. */
function findFirstAbove(cumulative: Float64Array, at: number): number {
  let low = 0;
  let high = cumulative.length - 1;
  const total = cumulative[high]!;
  if (!(at < total)) return cumulative.indexOf(total);
  while (low < high) {
    const middle = (low + high) >> 1;
    if (cumulative[middle]! > at) high = middle;
    else low = middle + 1;
  }
  return low;
}

/**
 * Second half: the id of each draw within its block, and how often each was drawn.
 * @param weights [wanted blocks, 128]
 * @returns ids by descending number of draws, the lower id first among equals
 */
export function countDraws(
  { blocks, shares, wanted }: BlockDraws,
  weights: Float32Array,
  { positions, draws, blockCount }: { readonly positions: number; readonly draws: number; readonly blockCount: number },
): SampledLabels {
  const places = new Map(wanted.map((block, place) => [block, place]));
  const cumulative = new Map<number, Float64Array>();
  const idOf = (i: number): number => {
    const block = blocks[i]!;
    let sums = cumulative.get(block);
    if (sums === undefined) {
      sums = accumulate(weights, places.get(block)! * BLOCK_IDS);
      cumulative.set(block, sums);
    }
    return (block % blockCount) * BLOCK_IDS + findFirstAbove(sums, shares[i]! * sums[BLOCK_IDS - 1]!);
  };
  const counts = new Int32Array(positions);
  const ids: number[] = [];
  const numbers: number[] = [];
  for (let position = 0; position < positions; position++) {
    const drawn = new Map<number, number>();
    for (let i = position * draws; i < (position + 1) * draws; i++) {
      const id = idOf(i);
      drawn.set(id, (drawn.get(id) ?? 0) + 1);
    }
    counts[position] = drawn.size;
    for (const [id, number] of [...drawn].sort(([idA, a], [idB, b]) => b - a || idA - idB)) {
      ids.push(id);
      numbers.push(number);
    }
  }
  return { counts, ids: Int32Array.from(ids), draws: Uint16Array.from(numbers) };
}

function accumulate(weights: Float32Array, first: number): Float64Array {
  const sums = new Float64Array(BLOCK_IDS);
  let total = 0;
  for (let i = 0; i < BLOCK_IDS; i++) sums[i] = total += weights[first + i]!;
  return sums;
}
