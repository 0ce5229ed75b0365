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
  /** [rows · length], 0 at padding. */
  readonly ids: BigInt64Array;
  /** [rows · length]: position of each token inside its own sequence, 0 at padding. */
  readonly positions: BigInt64Array;
  /** [rows · length]: 1 + index of the sequence a token belongs to, 0 at padding; attention stays inside a segment. */
  readonly segments: BigInt64Array;
  readonly placements: readonly Placement[];
}

/** Index of a sequence's token `t` in the flattened batch. */
export function flatIndex(batch: TokenBatch, placement: Placement, t: number): number {
  return placement.row * batch.length + placement.column + t;
}

/** One sequence a row, padded on the right to the longest. */
export function padSequences(sequences: readonly Int32Array[]): TokenBatch {
  const length = Math.max(1, ...sequences.map((ids) => ids.length));
  return layOut(
    sequences,
    length,
    sequences.map((ids, sequence) => ({ sequence, row: sequence, column: 0, length: ids.length })),
  );
}

/**
 * Several sequences a row where they fit, none split: first-fit decreasing into rows of the longest sequence's
 * length. Fills the rectangle better than padding does and computes the same (attention is block-diagonal).
 */
export function packSequences(sequences: readonly Int32Array[]): TokenBatch {
  const length = Math.max(1, ...sequences.map((ids) => ids.length));
  const longestFirst = sequences.map((_, i) => i).sort((a, b) => sequences[b]!.length - sequences[a]!.length || a - b);
  const filled: number[] = [];
  const placements = longestFirst.map((sequence): Placement => {
    const needed = sequences[sequence]!.length;
    let row = filled.findIndex((used) => used + needed <= length);
    if (row < 0) row = filled.push(0) - 1;
    const column = filled[row]!;
    filled[row] = column + needed;
    return { sequence, row, column, length: needed };
  });
  return layOut(
    sequences,
    length,
    placements.sort((a, b) => a.sequence - b.sequence),
  );
}

function layOut(sequences: readonly Int32Array[], length: number, placements: readonly Placement[]): TokenBatch {
  const rows = 1 + Math.max(0, ...placements.map(({ row }) => row));
  const ids = new BigInt64Array(rows * length);
  const positions = new BigInt64Array(rows * length);
  const segments = new BigInt64Array(rows * length);
  for (const { sequence, row, column } of placements) {
    sequences[sequence]!.forEach((id, t) => {
      const at = row * length + column + t;
      ids[at] = BigInt(id);
      positions[at] = BigInt(t);
      segments[at] = BigInt(sequence + 1);
    });
  }
  return { rows, length, ids, positions, segments, placements };
}
