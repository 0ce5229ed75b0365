import { StillhouseError } from '@stillhouse/errors';
import type { LogprobDtype } from '../codecs/logprob-codes.ts';
import { refuseDescription, requireWholeNumber } from './description-error.ts';

/**
 * Which of the teacher's ids are kept at a position and how. Optional keys are left out where they have their default,
 * so that the canonical JSON of older descriptions is what it was.
 */
export interface TopKPolicy {
  /** The most ids that are kept for their rank. */
  readonly k: number;
  /** The grid of `log_z`; none where the tail is unknown. */
  readonly temperatures: readonly number[];
  /**
   * `exact` (default): `log_z` gives the mass outside at each temperature of the grid; `unknown`: the teacher gave its
   * best ids and nothing else, so there is no `log_z`, and no bound on what is not stored.
   */
  readonly tail?: 'exact' | 'unknown';
  /** `plain` (default): lists of numbers; `zstd`: one blob a row, see `topk-packing.ts`. */
  readonly packing?: 'plain' | 'zstd';
  /** How packed logprobs are kept, default `float32`; see `logprob-codes.ts`. */
  readonly logprobDtype?: LogprobDtype;
  /**
   * Ragged by mass: the fewest ids that hold this much at T = 1, from `minK` to `k` of them. With `minK` or not at all.
   */
  readonly topP?: number;
  readonly minK?: number;
  /** Ids that are kept at every position whatever their rank; ascending. */
  readonly pinnedIds?: readonly number[];
  /** Whether the id that the position is to predict is kept whatever its rank. Default false. */
  readonly keepTarget?: boolean;
}

/** Ids drawn from the teacher's distribution (random-sampling KD, arXiv 2503.16870). */
export interface SampledPolicy {
  /** Independent draws at each position. */
  readonly draws: number;
  /** Of the distribution that is drawn from: p^(1 / T), normalised. */
  readonly temperature: number;
  /** Draws depend on it, the row's id and the position alone. Default 0. */
  readonly seed?: number;
}

/** Draws are counted in 16 bits. */
export const MOST_DRAWS = 65_535;
/** Counts of packed labels take 16 bits. */
const MOST_PACKED_ENTRIES = 65_535;
const LOGPROB_DTYPES: readonly unknown[] = ['float32', 'float16', 'uint16', 'uint8'];

/** The most entries that a position may have: those kept for their rank, pinned ids, the target. */
export const largestTopKCount = ({ k, pinnedIds = [], keepTarget = false }: TopKPolicy, vocabSize: number): number =>
  Math.min(vocabSize, k + pinnedIds.length + (keepTarget ? 1 : 0));

/** Whether every position has all ids of the vocabulary, so that nothing is outside. */
export const keepsWholeVocabulary = ({ k, topP }: TopKPolicy, vocabSize: number): boolean =>
  k === vocabSize && topP === undefined;

/**
 * A copy with every key in its fixed order and without those at their default.
 * @throws StillhouseError CACHE_DESCRIPTION_INVALID, TOP_K_LARGER_THAN_VOCABULARY
 */
export function normaliseTopK(policy: TopKPolicy, vocabSize: number): TopKPolicy {
  const { k, temperatures, packing = 'plain', logprobDtype = 'float32', topP, minK, keepTarget = false } = policy;
  const { tail = 'exact', pinnedIds = [] } = policy;
  requireWholeNumber('labels.topk.k', k, 1);
  if (k > vocabSize) {
    throw new StillhouseError({
      code: 'TOP_K_LARGER_THAN_VOCABULARY',
      where: 'labels.topk.k',
      problem: 'the teacher has fewer ids than that',
      expected: `at most ${vocabSize}`,
      got: String(k),
    });
  }
  if (tail !== 'exact' && tail !== 'unknown')
    refuseDescription('labels.topk.tail is unknown', 'exact or unknown', String(tail));
  requireTemperatures(temperatures, tail);
  if (packing !== 'plain' && packing !== 'zstd')
    refuseDescription('labels.topk.packing is unknown', 'plain or zstd', packing);
  if (!LOGPROB_DTYPES.includes(logprobDtype))
    refuseDescription('labels.topk.logprobDtype is unknown', 'float32, float16, uint16 or uint8', String(logprobDtype));
  if (packing === 'plain' && logprobDtype !== 'float32')
    refuseDescription('plain top-k labels hold float32 logprobs', 'packing zstd', logprobDtype);
  requireMass(policy);
  requirePinnedIds(pinnedIds, vocabSize);
  if (typeof keepTarget !== 'boolean') refuseDescription('labels.topk.keepTarget is not true or false');
  const most = largestTopKCount(policy, vocabSize);
  if (packing === 'zstd' && most > MOST_PACKED_ENTRIES)
    refuseDescription('packed top-k labels have too many entries', `at most ${MOST_PACKED_ENTRIES}`, String(most));
  return {
    k,
    temperatures: [...temperatures],
    ...(tail === 'exact' ? {} : { tail }),
    ...(packing === 'plain' ? {} : { packing }),
    ...(logprobDtype === 'float32' ? {} : { logprobDtype }),
    ...(topP === undefined ? {} : { topP, minK: minK! }),
    ...(pinnedIds.length === 0 ? {} : { pinnedIds: [...pinnedIds] }),
    ...(keepTarget ? { keepTarget } : {}),
  };
}

function requireTemperatures(temperatures: readonly number[], tail: 'exact' | 'unknown'): void {
  if (tail === 'unknown') {
    if (temperatures.length > 0)
      refuseDescription('a tail that is unknown has no log_z', 'no temperatures', temperatures.join(', '));
    return;
  }
  if (temperatures.length === 0)
    refuseDescription('labels.topk.temperatures is empty', 'at least one temperature, such as 1');
  for (const temperature of temperatures) requireTemperature(temperature);
  if (new Set(temperatures).size !== temperatures.length) refuseDescription('a temperature is named twice');
}

function requireTemperature(temperature: number): void {
  if (!(temperature >= 0.01 && temperature <= 1000))
    refuseDescription('a temperature is out of range', '0.01 to 1000', String(temperature));
}

function requireMass({ k, topP, minK }: TopKPolicy): void {
  if ((topP === undefined) !== (minK === undefined))
    refuseDescription('labels.topk.topP and minK go together', 'both or neither', topP === undefined ? 'minK' : 'topP');
  if (topP === undefined) return;
  if (!(topP > 0 && topP < 1)) refuseDescription('labels.topk.topP is no mass', 'above 0 and below 1', String(topP));
  requireWholeNumber('labels.topk.minK', minK!, 1, k);
}

function requirePinnedIds(ids: readonly number[], vocabSize: number): void {
  for (const [i, id] of ids.entries()) {
    requireWholeNumber('an id of labels.topk.pinnedIds', id, 0, vocabSize - 1);
    if (i > 0 && id <= ids[i - 1]!)
      refuseDescription('labels.topk.pinnedIds is not ascending', `ids above ${ids[i - 1]}`, String(id));
  }
}

/** @throws StillhouseError CACHE_DESCRIPTION_INVALID */
export function normaliseSampled({ draws, temperature, seed = 0 }: SampledPolicy): SampledPolicy {
  requireWholeNumber('labels.sampled.draws', draws, 1, MOST_DRAWS);
  requireTemperature(temperature);
  requireWholeNumber('labels.sampled.seed', seed, 0);
  return { draws, temperature, ...(seed === 0 ? {} : { seed }) };
}
