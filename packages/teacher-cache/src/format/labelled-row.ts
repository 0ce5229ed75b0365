import type { HiddenDtype, LabelPositions } from './description.ts';
import type { HiddenLayer } from './hidden-layer.ts';

/** One sequence of L tokens, without labels. */
export interface CachedRow {
  /** Unique within a cache; rows are addressed by it, whatever their order. Not empty. */
  readonly id: string;
  /** [L] token ids. */
  readonly inputIds: Int32Array;
  /** [L] 1 where the token is to be predicted, 0 elsewhere; the first is 0. */
  readonly lossMask: Uint8Array;
  readonly task?: string;
  readonly split?: string;
  /** Where the row came from. */
  readonly source?: string;
  /** The verified answer. */
  readonly answer?: string;
}

/** The teacher's most probable ids at P label positions, ragged: position i has `counts[i]` entries. */
export interface TopKLabels {
  /** [P] entries at each position, at least 1. */
  readonly counts: Int32Array;
  /** [sum of counts] token ids, by descending probability within a position. */
  readonly ids: Int32Array;
  /** [sum of counts] natural logarithms of the probabilities at T = 1, over the whole vocabulary. */
  readonly logprobs: Float32Array;
  /** [P, temperatures] log of the sum over the vocabulary of exp(logprob / T); 0 at T = 1. */
  readonly logZ: Float32Array;
}

/** Ids drawn from the teacher's distribution at P label positions, ragged: position i has `counts[i]` distinct ids. */
export interface SampledLabels {
  /** [P] distinct ids at each position, at least 1. */
  readonly counts: Int32Array;
  /** [sum of counts] token ids. */
  readonly ids: Int32Array;
  /** [sum of counts] how often each was drawn; they add up to `labels.sampled.draws` at each position. */
  readonly draws: Uint16Array;
  /** [sum of counts] log-probabilities at T = 1, where they are known: with them draws can be weighed for another T. */
  readonly logprobs?: Float32Array;
}

/** Hidden states of one layer at P label positions. */
export interface HiddenLabels {
  readonly layer: HiddenLayer;
  readonly dtype: HiddenDtype;
  /** Numbers of a position: the teacher's hidden size D, for `coded` the rank of the codebook. */
  readonly width: number;
  /** [P, width]; for float16 the bits of the numbers, for `coded` multiples of the step in each coordinate. */
  readonly values: Int8Array | Int16Array | Uint16Array | Float32Array;
  /** [P] for `int8` only: value = int8 * tokenScale[position] * channelRms[channel]. */
  readonly tokenScale?: Float32Array;
  /** [P, D / 64] for `int8-groups` only, float16 bits: value = int8 * groupScale[position, group]. */
  readonly groupScale?: Uint16Array;
}

/** A row with its labels; arrays that come from a cache are views on shared memory, not to be written to. */
export interface LabelledRow {
  readonly row: CachedRow;
  /** [P] the positions that have labels, ascending; position p predicts token p + 1. */
  readonly positions: Int32Array;
  readonly topk?: TopKLabels;
  readonly sampled?: SampledLabels;
  readonly hidden?: ReadonlyMap<HiddenLayer, HiddenLabels>;
}

/** [P] the ids that label positions are to predict: position p predicts token p + 1. */
export function targetsOf({ inputIds }: Pick<CachedRow, 'inputIds'>, positions: Int32Array): Int32Array {
  const targets = new Int32Array(positions.length);
  for (let i = 0; i < targets.length; i++) targets[i] = inputIds[positions[i]! + 1]!;
  return targets;
}

/**
 * The positions of a row at which labels are stored: those whose next token's mask is 1 (`response`) or all L-1
 * (`all`). They follow from the mask, so a cache never stores them.
 * @returns [P] ascending
 */
export function labelPositions(lossMask: Uint8Array, policy: LabelPositions): Int32Array {
  const last = Math.max(0, lossMask.length - 1);
  const positions = new Int32Array(last);
  let count = 0;
  for (let position = 0; position < last; position++) {
    if (policy === 'all' || lossMask[position + 1] === 1) positions[count++] = position;
  }
  return count === last ? positions : positions.slice(0, count);
}

/** Which labels to read; what is left out is not touched. By default everything the cache has. */
export interface LabelSelection {
  readonly topk?: boolean;
  readonly sampled?: boolean;
  readonly hidden?: readonly HiddenLayer[];
}
