import { type CacheDescription, GROUP_CHANNELS, hiddenGroup } from '../format/description.ts';
import {
  type CachedRow,
  type HiddenLabels,
  type LabelledRow,
  labelPositions,
  targetsOf,
} from '../format/labelled-row.ts';
import { checkSampled, checkTopK } from './distribution-checks.ts';

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

/** What is wrong with the hidden states of one layer at `positions` positions. */
export function* checkHidden(
  labels: HiddenLabels,
  positions: number,
  description: CacheDescription,
): Generator<string> {
  const policy = description.labels.hidden;
  const { values, tokenScale, groupScale, width } = labels;
  if (policy === null || description.teacher === null) return yield 'there are hidden states the cache does not have';
  // The rank of coded states is the codebook's, which decodes them or does not.
  if (policy.dtype !== 'coded' && width !== description.teacher.hiddenSize) {
    return yield `the width is ${width}, the teacher's is ${description.teacher.hiddenSize}`;
  }
  const fits = {
    int8: Int8Array,
    'int8-groups': Int8Array,
    coded: Int16Array,
    float16: Uint16Array,
    float32: Float32Array,
  }[policy.dtype];
  if (labels.dtype !== policy.dtype || !(values instanceof fits)) return yield `the dtype is not ${policy.dtype}`;
  if (values.length !== positions * width)
    return yield `there are ${values.length} numbers, expected ${positions} x ${width}`;
  if (policy.dtype === 'coded') return;
  if (policy.dtype === 'int8-groups') {
    const groups = positions * (width / GROUP_CHANNELS);
    if (groupScale?.length !== groups)
      return yield `there are ${groupScale?.length ?? 'no'} scales, expected ${groups}`;
    // Positive and finite, as float16 bits.
    const bad = groupScale.findIndex((bits) => bits === 0 || bits >= 0x7c00);
    if (bad >= 0) yield `scale ${bad} is not a positive number`;
  }
  if (policy.dtype === 'int8') {
    if (tokenScale?.length !== positions)
      return yield `there are ${tokenScale?.length ?? 'no'} scales, expected ${positions}`;
    const bad = tokenScale.findIndex((scale) => !(scale > 0 && scale < Infinity));
    if (bad >= 0) yield `position ${bad}: the scale is ${tokenScale[bad]}`;
  }
  if (values instanceof Int8Array) {
    // Buffer searches many bytes at a time.
    const lowest = Buffer.from(values.buffer, values.byteOffset, values.length).indexOf(0x80);
    if (lowest >= 0) yield `position ${Math.floor(lowest / width)}: -128 is not a level, they go from -127 to 127`;
    return;
  }
  const bad =
    values instanceof Uint16Array
      ? values.findIndex((bits) => (bits & 0x7c00) === 0x7c00)
      : values.findIndex((value) => !Number.isFinite(value));
  if (bad >= 0) yield `position ${Math.floor(bad / width)}: the hidden state is not finite`;
}

function hasSameNumbers(a: Int32Array, b: Int32Array): boolean {
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return a.length === b.length;
}

/** Everything that is wrong with a row and its labels, each with the group it concerns. */
export function* checkLabelledRow(
  labelled: LabelledRow,
  description: CacheDescription,
): Generator<{ readonly group: string; readonly problem: string }> {
  const { row, positions, topk, sampled, hidden } = labelled;
  let rowsFit = true;
  for (const problem of checkRow(row, description)) {
    rowsFit = false;
    yield { group: 'rows', problem };
  }
  if (!rowsFit) return;
  const expected = labelPositions(row.lossMask, description.positions);
  if (!hasSameNumbers(positions, expected)) {
    return yield { group: 'rows', problem: `the positions are not those of the mask (${description.positions})` };
  }
  if (description.labels.topk !== null && topk === undefined) yield { group: 'topk', problem: 'there are no labels' };
  if (topk !== undefined) {
    const targets = targetsOf(row, positions);
    for (const problem of checkTopK(topk, targets, description)) yield { group: 'topk', problem };
  }
  if ((description.labels.sampled ?? null) !== null && sampled === undefined)
    yield { group: 'sampled', problem: 'there are no labels' };
  if (sampled !== undefined) {
    for (const problem of checkSampled(sampled, positions.length, description)) yield { group: 'sampled', problem };
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
