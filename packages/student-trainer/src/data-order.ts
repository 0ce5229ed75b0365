/** 32 bits of a state and a counter (splitmix32): each epoch's order depends on the seed and the epoch alone. */
function randomBits(state: number): () => number {
  let counter = state >>> 0;
  return () => {
    counter = (counter + 0x9e3779b9) >>> 0;
    let mixed = Math.imul(counter ^ (counter >>> 16), 0x21f0aaad);
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97);
    return (mixed ^ (mixed >>> 15)) >>> 0;
  };
}

/** A permutation of 0..count-1 (Fisher-Yates) that depends on nothing but seed and epoch. */
export function shuffledOrder(count: number, seed: number, epoch: number): Int32Array {
  const order = Int32Array.from({ length: count }, (_, i) => i);
  const next = randomBits(Math.imul(seed + 1, 0x85ebca6b) ^ Math.imul(epoch + 1, 0xc2b2ae35));
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor((next() / 2 ** 32) * (i + 1));
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
}

/** Where a run stands in its data. */
export interface DataPosition {
  readonly epoch: number;
  /** Rows of this epoch that are used up. */
  readonly consumed: number;
}

/** The rows of one optimiser step, and where the next step begins. */
export interface StepRows {
  readonly rows: readonly number[];
  readonly next: DataPosition;
}

/**
 * Takes rows in shuffled order until they hold at least `batchTokens` tokens; an epoch's end starts the next one.
 * What a step sees does not depend on how it is split into micro-batches.
 * @param lengths tokens of each row
 */
export function takeStepRows(
  lengths: ArrayLike<number>,
  seed: number,
  position: DataPosition,
  batchTokens: number,
): StepRows {
  let { epoch, consumed } = position;
  let order = shuffledOrder(lengths.length, seed, epoch);
  const rows: number[] = [];
  let tokens = 0;
  while (tokens < batchTokens) {
    if (consumed === order.length) {
      epoch += 1;
      consumed = 0;
      order = shuffledOrder(lengths.length, seed, epoch);
    }
    const row = order[consumed++]!;
    rows.push(row);
    tokens += lengths[row]!;
  }
  return { rows, next: { epoch, consumed } };
}
