/**
 * Which sequences go through a layer together. Longest first; each batch is as long as its longest sequence, holds as
 * many rows as the budget allows, and its gaps are filled with whatever still fits (first-fit decreasing), as
 * `packSequences` will lay it out. So a few long sequences do not stretch the rest, and little is padding.
 *
 * @param lengths tokens of each sequence, at least 1
 * @param batchTokens tokens of a batch's rectangle; a longer sequence gets a batch of its own
 * @returns the sequence numbers of each batch; depends on nothing but the arguments
 */
export function planBatches(lengths: readonly number[], batchTokens: number): readonly (readonly number[])[] {
  let remaining = lengths.map((_, sequence) => sequence).sort((a, b) => lengths[b]! - lengths[a]! || a - b);
  const batches: (readonly number[])[] = [];
  while (remaining.length > 0) {
    const longest = lengths[remaining[0]!]!;
    const free = new Array<number>(Math.max(1, Math.floor(batchTokens / longest))).fill(longest);
    const batch: number[] = [];
    const left: number[] = [];
    for (const sequence of remaining) {
      const row = free.findIndex((tokens) => tokens >= lengths[sequence]!);
      if (row < 0) {
        left.push(sequence);
        continue;
      }
      free[row]! -= lengths[sequence]!;
      batch.push(sequence);
    }
    batches.push(batch.sort((a, b) => a - b));
    remaining = left;
  }
  return batches;
}

/**
 * Sequences of like length side by side, the shortest first: rows that are read one by one and reported batch by batch.
 * @param most rows of a batch, and tokens of its rectangle; a longer sequence gets a batch of its own
 * @returns the sequence numbers of each batch
 */
export function planLikeLengths(
  lengths: readonly number[],
  most: { readonly rows: number; readonly tokens: number },
): readonly (readonly number[])[] {
  const groups: number[][] = [];
  for (const sequence of [...lengths.keys()].sort((a, b) => lengths[a]! - lengths[b]! || a - b)) {
    const last = groups.at(-1);
    const hasRoom = last !== undefined && last.length < most.rows;
    if (hasRoom && (last.length + 1) * lengths[sequence]! <= most.tokens) last.push(sequence);
    else groups.push([sequence]);
  }
  return groups;
}
