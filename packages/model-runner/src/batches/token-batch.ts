import { cutIntoBlocks } from '@stillhouse/decoder';

/** Where one sequence stands inside a batch. */
export interface Placement {
  /** Index into the sequences the batch was made of. */
  readonly sequence: number;
  /** Row of the batch and the column of its first token. */
  readonly row: number;
  readonly column: number;
  readonly length: number;
}

/** Sequences laid out as a [rows, length] rectangle of ids. */
export interface TokenBatch {
  readonly rows: number;
  readonly length: number;
  /** Into how many equal blocks the columns are cut for attention, see `cutIntoBlocks`. */
  readonly queryBlocks: number;
  /** [rows · length], 0 at padding. */
  readonly ids: BigInt64Array;
  /** [rows · length]: position of each token inside its own sequence, 0 at padding. */
  readonly positions: Int32Array;
  /** [rows · length]: 1 + index of the sequence a token belongs to, 0 at padding; attention stays inside a segment. */
  readonly segments: Int32Array;
  readonly placements: readonly Placement[];
}

/** Index of a sequence's token `t` in the flattened batch. */
export function flatIndex(batch: TokenBatch, placement: Placement, t: number): number {
  return placement.row * batch.length + placement.column + t;
}

/** One sequence a row, padded on the right to the longest, and to whole blocks of at most `blockLength` columns. */
export function padSequences(sequences: readonly Int32Array[], blockLength?: number): TokenBatch {
  const length = Math.max(1, ...sequences.map((ids) => ids.length));
  return layOut(
    sequences,
    length,
    sequences.map((ids, sequence) => ({ sequence, row: sequence, column: 0, length: ids.length })),
    blockLength,
  );
}

/**
 * Several sequences a row where they fit, none split, and the rows padded as `padSequences` does; attention is
 * block-diagonal, so the same is computed. First-fit decreasing into rows of the longest sequence's length.
 * @param columnCost what attention over one more column costs a token, as a share of all else that a token costs. With
 *   it rows may be longer than the longest sequence where that leaves so little padding that a batch of [B, T] costs
 *   less, B · T · (1 + columnCost · T): fewer rows are filled by longest processing time first (Graham 1969).
 */
export function packSequences(sequences: readonly Int32Array[], columnCost?: number, blockLength?: number): TokenBatch {
  const lengths = sequences.map((ids) => ids.length);
  const longest = Math.max(1, ...lengths);
  const longestFirst = lengths.map((_, i) => i).sort((a, b) => lengths[b]! - lengths[a]! || a - b);
  let best = fillRows(lengths, longestFirst, longest);
  if (columnCost !== undefined) {
    const total = lengths.reduce((sum, length) => sum + length, 0);
    const costOf = (tokens: number, length: number) => tokens * (1 + columnCost * length);
    let least = costOf(best.rows * best.length, best.length);
    // Without any padding fewer rows cost no less than this, and yet fewer cost more.
    for (let rows = best.rows - 1; rows > 0 && costOf(total, total / rows) < least; rows--) {
      const packing = balanceRows(lengths, longestFirst, rows);
      const cost = costOf(rows * packing.length, packing.length);
      if (cost < least) [best, least] = [packing, cost];
    }
  }
  return layOut(
    sequences,
    best.length,
    [...best.placements].sort((a, b) => a.sequence - b.sequence),
    blockLength,
  );
}

interface Packing {
  readonly rows: number;
  readonly length: number;
  readonly placements: readonly Placement[];
}

/** Each sequence into the first row of `length` that has room for it. */
function fillRows(lengths: readonly number[], order: readonly number[], length: number): Packing {
  const filled: number[] = [];
  const placements = order.map((sequence): Placement => {
    const needed = lengths[sequence]!;
    let row = filled.findIndex((used) => used + needed <= length);
    if (row < 0) row = filled.push(0) - 1;
    const column = filled[row]!;
    filled[row] = column + needed;
    return { sequence, row, column, length: needed };
  });
  return { rows: Math.max(1, filled.length), length, placements };
}

/** Each sequence into the row that is filled least. */
function balanceRows(lengths: readonly number[], order: readonly number[], rows: number): Packing {
  const filled = new Array<number>(rows).fill(0);
  const placements = order.map((sequence): Placement => {
    const row = filled.indexOf(Math.min(...filled));
    const column = filled[row]!;
    filled[row] = column + lengths[sequence]!;
    return { sequence, row, column, length: lengths[sequence]! };
  });
  return { rows, length: Math.max(...filled), placements };
}

function layOut(
  sequences: readonly Int32Array[],
  longest: number,
  placements: readonly Placement[],
  blockLength: number | undefined,
): TokenBatch {
  const { length, queryBlocks } = cutIntoBlocks(longest, blockLength);
  const rows = 1 + Math.max(0, ...placements.map(({ row }) => row));
  const ids = new BigInt64Array(rows * length);
  const positions = new Int32Array(rows * length);
  const segments = new Int32Array(rows * length);
  for (const { sequence, row, column } of placements) {
    sequences[sequence]!.forEach((id, t) => {
      const at = row * length + column + t;
      ids[at] = BigInt(id);
      positions[at] = t;
      segments[at] = sequence + 1;
    });
  }
  return { rows, length, queryBlocks, ids, positions, segments, placements };
}
