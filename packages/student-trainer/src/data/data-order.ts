import { shuffledOrder } from '@stillhouse/seeded-random';

/** Where a run stands in one cache. */
export interface SourcePosition {
  readonly epoch: number;
  /** Rows of this epoch that are used up. */
  readonly consumed: number;
}

/** Where a run stands in its data: a position in each of its caches. */
export type DataPosition = readonly SourcePosition[];

/** The rows of one cache, for an order. */
export interface OrderedSource {
  /** Tokens of each row, at least 1. */
  readonly lengths: ArrayLike<number>;
  /** Its tokens are to those of another cache as their weights are. */
  readonly weight: number;
}

/** A row of one of several caches. */
export interface SourceRow {
  readonly source: number;
  readonly row: number;
}

/** The rows of one optimiser step, and where the next step begins. */
export interface StepRows {
  readonly rows: readonly SourceRow[];
  readonly next: DataPosition;
}

export interface DataOrder {
  readonly start: DataPosition;
  /** Takes rows until they hold at least `batchTokens` tokens; a cache's end starts its next epoch. */
  take(position: DataPosition, batchTokens: number): StepRows;
  /** Passes over each cache up to a position, by rows. */
  countEpochs(position: DataPosition): readonly number[];
}

/**
 * One sequence of rows without end. Each cache goes through its rows in a permutation for each epoch; the next row is
 * of the cache whose tokens so far, over its weight, are fewest (the first of those that are level). So at every row
 * the shares in tokens are the weights, but for less than the longest row, where a random draw would be off by the
 * square root of the rows; and what a step sees depends on seed, rows and weights alone: not on how many tokens a step
 * has, nor on how it is split. This is weighted fair queueing (Demers, Keshav and Shenker 1989), caches for flows.
 */
export function openDataOrder(sources: readonly OrderedSource[], seed: number): DataOrder {
  const totals = sources.map(({ lengths }) => sumLengths(lengths));
  /** Where a source stands: its order of this epoch, and the tokens that it has given since the beginning. */
  interface Cursor extends SourcePosition {
    readonly order: Int32Array;
    readonly tokens: number;
  }
  const shuffle = (source: number, epoch: number) =>
    shuffledOrder(sources[source]!.lengths.length, seed, epoch, source);
  const seek = ({ epoch, consumed }: SourcePosition, source: number): Cursor => {
    const order = shuffle(source, epoch);
    const { lengths } = sources[source]!;
    let tokens = epoch * totals[source]!;
    for (let i = 0; i < consumed; i++) tokens += lengths[order[i]!]!;
    return { epoch, consumed, order, tokens };
  };
  // Steps come one after the other: the next begins where the last one ended.
  let newest: readonly Cursor[] = [];
  const find = (position: DataPosition): readonly Cursor[] =>
    position.map((one, source) => {
      const known = newest[source];
      return known?.epoch === one.epoch && known.consumed === one.consumed ? known : seek(one, source);
    });
  const start = sources.map(() => ({ epoch: 0, consumed: 0 }));
  return {
    start,
    take(position, batchTokens) {
      const cursors = [...find(position)];
      const rows: SourceRow[] = [];
      for (let taken = 0; taken < batchTokens; ) {
        const source = leastServed(cursors, sources);
        let { epoch, consumed, order, tokens } = cursors[source]!;
        if (consumed === order.length) {
          epoch += 1;
          consumed = 0;
          order = shuffle(source, epoch);
        }
        const row = order[consumed]!;
        const length = sources[source]!.lengths[row]!;
        rows.push({ source, row });
        taken += length;
        tokens += length;
        cursors[source] = { epoch, consumed: consumed + 1, order, tokens };
      }
      newest = cursors;
      return { rows, next: cursors.map(({ epoch, consumed }) => ({ epoch, consumed })) };
    },
    countEpochs: (position) =>
      position.map(({ epoch, consumed }, source) => epoch + consumed / sources[source]!.lengths.length),
  };
}

/** Tokens of rows together. */
export function sumLengths(lengths: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < lengths.length; i++) sum += lengths[i]!;
  return sum;
}

function leastServed(served: readonly { readonly tokens: number }[], sources: readonly OrderedSource[]): number {
  let least = 0;
  for (let source = 1; source < sources.length; source++) {
    if (served[source]!.tokens / sources[source]!.weight < served[least]!.tokens / sources[least]!.weight)
      least = source;
  }
  return least;
}

/**
 * The fewest steps in which all rows together have been seen so often: `epochs` times the tokens of all caches, by
 * whatever weights they come. Without weights that is each row so often, and a few of the last step once more.
 */
export function countSteps(
  sources: readonly OrderedSource[],
  seed: number,
  batchTokens: number,
  epochs: number,
): number {
  const order = openDataOrder(sources, seed);
  const wanted = epochs * sources.reduce((sum, { lengths }) => sum + sumLengths(lengths), 0);
  let position = order.start;
  let steps = 0;
  for (let tokens = 0; tokens < wanted; steps++) {
    const { rows, next } = order.take(position, batchTokens);
    tokens += rows.reduce((sum, { source, row }) => sum + sources[source]!.lengths[row]!, 0);
    position = next;
  }
  return steps;
}
