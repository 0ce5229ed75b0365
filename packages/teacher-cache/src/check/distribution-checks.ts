import { boundLogprobs } from '../codecs/logprob-codes.ts';
import type { CacheDescription } from '../format/description.ts';
import { largestTopKCount, type TopKPolicy } from '../format/label-policy.ts';
import type { SampledLabels, TopKLabels } from '../format/labelled-row.ts';
import { openSoundCheck, TOLERANCE } from './sound-topk.ts';

/**
 * What is wrong with top-k labels.
 * @param targets [P] the ids that the positions are to predict
 */
export function* checkTopK(labels: TopKLabels, targets: Int32Array, description: CacheDescription): Generator<string> {
  const policy = description.labels.topk;
  if (policy === null || description.teacher === null) return yield 'there are top-k labels the cache does not have';
  const { vocabSize } = description.teacher;
  const { counts, ids, logprobs, logZ } = labels;
  const positions = targets.length;
  const { temperatures, minK = 1 } = policy;
  if (counts.length !== positions) return yield `top-k has ${counts.length} positions, the mask ${positions}`;
  const [least, most] = [Math.min(minK, vocabSize), largestTopKCount(policy, vocabSize)];
  const badCount = counts.findIndex((count) => count < least || count > most);
  if (badCount >= 0)
    return yield `position ${badCount} has ${counts[badCount]} entries, allowed are ${least} to ${most}`;
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (ids.length !== total || logprobs.length !== total) {
    return yield `counts add up to ${total}, there are ${ids.length} ids and ${logprobs.length} logprobs`;
  }
  if (logZ.length !== positions * temperatures.length) {
    return yield `log_z has ${logZ.length} numbers, expected ${positions} x ${temperatures.length}`;
  }
  const seen = trackSeen(vocabSize, positions);
  const isSound = openSoundCheck(policy, vocabSize);
  let start = 0;
  for (let position = 0; position < positions; position++) {
    const end = start + counts[position]!;
    if (isSound?.(labels, position, start, end) === true) {
      start = end;
      continue;
    }
    const entries = { labels, position, start, end, target: targets[position]! };
    const problem =
      checkIds(ids, entries, seen) ??
      checkKeptIds(entries, policy, seen) ??
      checkLogprobs(entries) ??
      checkMass(entries, policy, vocabSize);
    if (problem !== undefined) return yield `position ${position}: ${problem}`;
    start = end;
  }
}

/** The entries [start, end) of one position. */
interface Entries {
  readonly labels: TopKLabels;
  readonly position: number;
  readonly start: number;
  readonly end: number;
  readonly target: number;
}

/** At which position an id was seen last. A fresh array for each row would be half of what a row weighs. */
interface SeenIds {
  readonly vocabSize: number;
  /** [at least vocabSize] */
  readonly marks: Float64Array;
  /** What position 0 is marked with; above all marks of rows before. */
  readonly firstMark: number;
}

let marks = new Float64Array();
let lastMark = 0;

function trackSeen(vocabSize: number, positions: number): SeenIds {
  if (marks.length < vocabSize) marks = new Float64Array(vocabSize);
  const firstMark = lastMark + 1;
  lastMark += positions;
  return { vocabSize, marks, firstMark };
}

const isSeen = ({ marks: at, firstMark }: SeenIds, id: number, position: number) => at[id] === firstMark + position;

function checkIds(
  ids: Int32Array,
  { position, start, end }: Pick<Entries, 'position' | 'start' | 'end'>,
  seen: SeenIds,
): string | undefined {
  const { vocabSize, marks: at } = seen;
  const mark = seen.firstMark + position;
  for (let i = start; i < end; i++) {
    const id = ids[i]!;
    if (id < 0 || id >= vocabSize) return `id ${id} is outside the vocabulary of ${vocabSize}`;
    if (at[id] === mark) return `id ${id} occurs twice`;
    at[id] = mark;
  }
  return undefined;
}

function checkKeptIds(
  { position, target }: Entries,
  { pinnedIds = [], keepTarget = false }: TopKPolicy,
  seen: SeenIds,
): string | undefined {
  const missing = pinnedIds.find((id) => !isSeen(seen, id, position));
  if (missing !== undefined) return `the pinned id ${missing} is missing`;
  return keepTarget && !isSeen(seen, target, position) ? `the target ${target} is missing` : undefined;
}

function checkLogprobs({ labels: { ids, logprobs }, start, end }: Entries): string | undefined {
  for (let i = start; i < end; i++) {
    const logprob = logprobs[i]!;
    if (!Number.isFinite(logprob)) return `the logprob of id ${ids[i]} is ${logprob}`;
    if (logprob > TOLERANCE) return `the logprob of id ${ids[i]} is ${logprob}, above 0`;
    if (i > start && logprob > logprobs[i - 1]!) return 'the entries are not by descending probability';
  }
  return undefined;
}

/**
 * The last entry that is there for its rank: ids outside have at most its probability. Pinned ids and the target may be
 * there for another reason; if all are, the first is surely the most probable of the vocabulary.
 */
function findLastRanked(
  { labels: { ids }, start, end, target }: Entries,
  { pinnedIds = [], keepTarget = false }: TopKPolicy,
): number {
  for (let i = end - 1; i > start; i--) {
    if (!pinnedIds.includes(ids[i]!) && !(keepTarget && ids[i] === target)) return i;
  }
  return start;
}

/**
 * The mass of the entries is at most 1 and, where the policy is by mass, enough. The tail has V - count entries, each
 * between 0 and the last ranked probability; that bounds log_z from both sides. Lossy logprobs are taken as low or as
 * high as they may have been.
 */
function checkMass(entries: Entries, policy: TopKPolicy, vocabSize: number): string | undefined {
  const { labels, position, start, end } = entries;
  const { logprobs, logZ } = labels;
  const { temperatures, topP, k, logprobDtype = 'float32' } = policy;
  const own = logprobs.subarray(start, end);
  const { low, high } = logprobDtype === 'float32' ? { low: own, high: own } : boundLogprobs(own, logprobDtype);
  const lowSums = sumExponentials(low, temperatures);
  const highSums = low === high ? lowSums : sumExponentials(high, temperatures);
  const mass = Math.exp(low[0]!) * lowSums[0]!;
  if (mass > 1 + TOLERANCE) return `the probabilities add up to ${mass}`;
  if (topP !== undefined && end - start < k && Math.exp(high[0]!) * highSums[0]! < topP - TOLERANCE)
    return `${end - start} entries hold a mass of ${mass.toFixed(6)}, fewer than ${k} are to hold ${topP}`;
  const tailSize = vocabSize - (end - start);
  const tailDistance = high[findLastRanked(entries, policy) - start]! - high[0]!;
  for (const [index, temperature] of temperatures.entries()) {
    const value = logZ[position * temperatures.length + index]!;
    if (!Number.isFinite(value)) return `log_z at T=${temperature} is ${value}`;
    if (temperature === 1 && Math.abs(value) > TOLERANCE) return `log_z at T=1 is ${value}, it must be 0`;
    const least = low[0]! / temperature + Math.log(lowSums[index + 1]!);
    const tailSum = tailSize * Math.exp(tailDistance / temperature);
    const most = high[0]! / temperature + Math.log(highSums[index + 1]! + tailSum);
    const slack = TOLERANCE * Math.max(1, Math.abs(value));
    if (value < least - slack) return `log_z at T=${temperature} is ${value}, the top k alone give ${least}`;
    if (value > most + slack) return `log_z at T=${temperature} is ${value}, the top k allow at most ${most}`;
  }
  return undefined;
}

/**
 * Σ exp((l - l_0) / T) at T = 1 and at each temperature; l_0 is the largest but for rounding. Where a temperature is
 * half of the one before it, or the other way round, no exponential is taken: its square or root does.
 */
function sumExponentials(logprobs: Float32Array | Float64Array, temperatures: readonly number[]): Float64Array {
  const sums = new Float64Array(1 + temperatures.length);
  const shift = logprobs[0]!;
  for (let i = 0; i < logprobs.length; i++) {
    const distance = logprobs[i]! - shift;
    let former = 1;
    let power = Math.exp(distance);
    sums[0]! += power;
    for (let t = 0; t < temperatures.length; t++) {
      const temperature = temperatures[t]!;
      if (temperature === 2 * former) power = Math.sqrt(power);
      else if (2 * temperature === former) power *= power;
      else if (temperature !== former) power = Math.exp(distance / temperature);
      former = temperature;
      sums[t + 1]! += power;
    }
  }
  return sums;
}

/** What is wrong with sampled labels at `positions` positions. */
export function* checkSampled(
  labels: SampledLabels,
  positions: number,
  description: CacheDescription,
): Generator<string> {
  const policy = description.labels.sampled ?? null;
  if (policy === null || description.teacher === null) return yield 'there are sampled labels the cache does not have';
  const { counts, ids, draws } = labels;
  if (counts.length !== positions) return yield `sampled has ${counts.length} positions, the mask ${positions}`;
  const badCount = counts.findIndex((count) => count < 1 || count > policy.draws);
  if (badCount >= 0) return yield `position ${badCount} has ${counts[badCount]} ids, allowed are 1 to ${policy.draws}`;
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (ids.length !== total || draws.length !== total)
    return yield `counts add up to ${total}, there are ${ids.length} ids and ${draws.length} draws`;
  const seen = trackSeen(description.teacher.vocabSize, positions);
  let start = 0;
  for (let position = 0; position < positions; position++) {
    const end = start + counts[position]!;
    const own = draws.subarray(start, end);
    const problem = checkIds(ids, { position, start, end }, seen) ?? checkDraws(own, policy.draws);
    if (problem !== undefined) return yield `position ${position}: ${problem}`;
    start = end;
  }
}

function checkDraws(draws: Uint16Array, wanted: number): string | undefined {
  if (draws.includes(0)) return 'an id was drawn 0 times';
  const sum = draws.reduce((total, count) => total + count, 0);
  return sum === wanted ? undefined : `the draws add up to ${sum}, there are ${wanted}`;
}
