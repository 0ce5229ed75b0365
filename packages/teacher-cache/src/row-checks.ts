import { type CacheDescription, hiddenGroup } from './description.ts';
import {
  type CachedRow,
  type HiddenLabels,
  type LabelledRow,
  labelPositions,
  type TopKLabels,
} from './labelled-row.ts';

/** What teachers of float32 arithmetic may miss by, in nats and as a share of probability. */
const TOLERANCE = 1e-3;

/** What is wrong with a row's ids, mask and metadata. */
export function* checkRow(row: CachedRow, description: CacheDescription): Generator<string> {
  const { inputIds, lossMask } = row;
  if (row.id === '') yield 'the row id is empty';
  if (inputIds.length === 0) yield 'there are no tokens';
  if (lossMask.length !== inputIds.length) {
    yield `the loss mask has ${lossMask.length} entries for ${inputIds.length} tokens`;
  }
  if (description.maxLength !== null && inputIds.length > description.maxLength) {
    yield `there are ${inputIds.length} tokens, the cache allows ${description.maxLength}`;
  }
  const vocabSize = Math.min(
    description.tokenizer?.realVocabSize ?? 2 ** 31,
    description.teacher?.vocabSize ?? 2 ** 31,
  );
  const badId = inputIds.findIndex((id) => id < 0 || id >= vocabSize);
  if (badId >= 0) yield `token ${badId} has id ${inputIds[badId]}, ids go from 0 to ${vocabSize - 1}`;
  const badMask = lossMask.findIndex((bit) => bit > 1);
  if (badMask >= 0) yield `the loss mask is ${lossMask[badMask]} at token ${badMask}, it is 0 or 1`;
  if (lossMask[0] === 1) yield 'the loss mask is 1 at the first token, which nothing predicts';
}

/** What is wrong with top-k labels at `positions` positions. */
export function* checkTopK(labels: TopKLabels, positions: number, description: CacheDescription): Generator<string> {
  const policy = description.labels.topk;
  if (policy === null || description.teacher === null) return yield 'there are top-k labels the cache does not have';
  const { counts, ids, logprobs, logZ } = labels;
  const { temperatures } = policy;
  if (counts.length !== positions) return yield `top-k has ${counts.length} positions, the mask ${positions}`;
  const badCount = counts.findIndex((count) => count < 1 || count > policy.k);
  if (badCount >= 0) return yield `position ${badCount} has ${counts[badCount]} entries, allowed are 1 to ${policy.k}`;
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (ids.length !== total || logprobs.length !== total) {
    return yield `counts add up to ${total}, there are ${ids.length} ids and ${logprobs.length} logprobs`;
  }
  if (logZ.length !== positions * temperatures.length) {
    return yield `log_z has ${logZ.length} numbers, expected ${positions} x ${temperatures.length}`;
  }
  // The position, counted from 1, at which an id was seen last.
  const seen = new Int32Array(description.teacher.vocabSize);
  let start = 0;
  for (let position = 0; position < positions; position++) {
    const end = start + counts[position]!;
    const problem =
      checkEntries(ids, logprobs, start, end, seen, position + 1) ??
      checkLogZ(labels, position, start, end, temperatures, description.teacher.vocabSize);
    if (problem !== undefined) return yield `position ${position}: ${problem}`;
    start = end;
  }
}

function checkEntries(
  ids: Int32Array,
  logprobs: Float32Array,
  start: number,
  end: number,
  seen: Int32Array,
  mark: number,
): string | undefined {
  for (let i = start; i < end; i++) {
    const id = ids[i]!;
    const logprob = logprobs[i]!;
    if (id < 0 || id >= seen.length) return `id ${id} is outside the vocabulary of ${seen.length}`;
    if (seen[id] === mark) return `id ${id} occurs twice`;
    seen[id] = mark;
    if (!Number.isFinite(logprob)) return `the logprob of id ${id} is ${logprob}`;
    if (logprob > TOLERANCE) return `the logprob of id ${id} is ${logprob}, above 0`;
    if (i > start && logprob > logprobs[i - 1]!) return 'the entries are not by descending probability';
  }
  return undefined;
}

/** The tail has V - k entries, each between 0 and the last stored probability; that bounds log_z from both sides. */
function checkLogZ(
  { logprobs, logZ }: TopKLabels,
  position: number,
  start: number,
  end: number,
  temperatures: readonly number[],
  vocabSize: number,
): string | undefined {
  let mass = 0;
  for (let i = start; i < end; i++) mass += Math.exp(logprobs[i]!);
  if (mass > 1 + TOLERANCE) return `the probabilities add up to ${mass}`;
  const tailSize = vocabSize - (end - start);
  for (const [index, temperature] of temperatures.entries()) {
    const value = logZ[position * temperatures.length + index]!;
    if (!Number.isFinite(value)) return `log_z at T=${temperature} is ${value}`;
    if (temperature === 1 && Math.abs(value) > TOLERANCE) return `log_z at T=1 is ${value}, it must be 0`;
    let sum = temperature === 1 ? mass : 0;
    if (temperature !== 1) for (let i = start; i < end; i++) sum += Math.exp(logprobs[i]! / temperature);
    const least = Math.log(sum);
    const most = Math.log(sum + tailSize * Math.exp(logprobs[end - 1]! / temperature));
    const slack = TOLERANCE * Math.max(1, Math.abs(value));
    if (value < least - slack) return `log_z at T=${temperature} is ${value}, the top k alone give ${least}`;
    if (value > most + slack) return `log_z at T=${temperature} is ${value}, the top k allow at most ${most}`;
  }
  return undefined;
}

/** What is wrong with the hidden states of one layer at `positions` positions. */
export function* checkHidden(
  labels: HiddenLabels,
  positions: number,
  description: CacheDescription,
): Generator<string> {
  const policy = description.labels.hidden;
  const { values, tokenScale, width } = labels;
  if (policy === null || description.teacher === null) return yield 'there are hidden states the cache does not have';
  if (width !== description.teacher.hiddenSize) {
    return yield `the width is ${width}, the teacher's is ${description.teacher.hiddenSize}`;
  }
  const fits = { int8: Int8Array, float16: Uint16Array, float32: Float32Array }[policy.dtype];
  if (labels.dtype !== policy.dtype || !(values instanceof fits)) return yield `the dtype is not ${policy.dtype}`;
  if (values.length !== positions * width)
    return yield `there are ${values.length} numbers, expected ${positions} x ${width}`;
  if (policy.dtype === 'int8') {
    if (tokenScale?.length !== positions)
      return yield `there are ${tokenScale?.length ?? 'no'} scales, expected ${positions}`;
    const bad = tokenScale.findIndex((scale) => !(scale > 0 && scale < Infinity));
    if (bad >= 0) yield `position ${bad}: the scale is ${tokenScale[bad]}`;
    const lowest = (values as Int8Array).indexOf(-128);
    if (lowest >= 0) yield `position ${Math.floor(lowest / width)}: -128 is not a level, they go from -127 to 127`;
    return;
  }
  const bad =
    values instanceof Uint16Array
      ? values.findIndex((bits) => (bits & 0x7c00) === 0x7c00)
      : values.findIndex((value) => !Number.isFinite(value));
  if (bad >= 0) yield `position ${Math.floor(bad / width)}: the hidden state is not finite`;
}

/** Everything that is wrong with a row and its labels, each with the group it concerns. */
export function* checkLabelledRow(
  labelled: LabelledRow,
  description: CacheDescription,
): Generator<{ readonly group: string; readonly problem: string }> {
  const { row, positions, topk, hidden } = labelled;
  let rowsFit = true;
  for (const problem of checkRow(row, description)) {
    rowsFit = false;
    yield { group: 'rows', problem };
  }
  if (!rowsFit) return;
  const expected = labelPositions(row.lossMask, description.positions);
  if (positions.length !== expected.length || positions.some((position, i) => position !== expected[i])) {
    return yield { group: 'rows', problem: `the positions are not those of the mask (${description.positions})` };
  }
  if (description.labels.topk !== null && topk === undefined) yield { group: 'topk', problem: 'there are no labels' };
  if (topk !== undefined) {
    for (const problem of checkTopK(topk, positions.length, description)) yield { group: 'topk', problem };
  }
  for (const layer of description.labels.hidden?.layers ?? []) {
    if (hidden?.get(layer) === undefined) yield { group: hiddenGroup(layer), problem: 'there are no hidden states' };
  }
  for (const [layer, states] of hidden ?? []) {
    const group = hiddenGroup(layer);
    if (!description.labels.hidden?.layers.includes(layer))
      yield { group, problem: 'the cache does not have this layer' };
    else for (const problem of checkHidden(states, positions.length, description)) yield { group, problem };
  }
}
