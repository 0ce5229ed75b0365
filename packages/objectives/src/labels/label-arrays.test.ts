import assert from 'node:assert/strict';
import type { LabelledRow, SampledLabels, TopKLabels } from '@stillhouse/teacher-cache';
import { expectClose } from '@stillhouse/testing';
import { test } from 'vitest';
import { ABSENT_LOGPROB, collectLabels, type LabelOptions, type SoftLabels } from '../index.ts';

/** A row of five tokens with labels at its last three positions; the loss leaves out the middle one. */
function makeRow(labels: Omit<LabelledRow, 'row' | 'positions'>): LabelledRow {
  const row = {
    id: 'row',
    inputIds: Int32Array.of(5, 1, 2, 3, 4),
    lossMask: Uint8Array.of(0, 0, 1, 0, 1),
  };
  return { row, positions: Int32Array.of(1, 2, 3), ...labels };
}

const p = (...values: readonly number[]) => values.map(Math.log);

const TOPK: TopKLabels = {
  counts: Int32Array.of(2, 1, 3),
  ids: Int32Array.of(7, 2, 0, 9, 4, 1),
  logprobs: Float32Array.from(p(0.5, 0.25, 1, 0.5, 0.3, 0.2 - 1e-6)),
  // T = 2 at each position, made up.
  logZ: Float32Array.of(0.75, 0.1, 1.5),
};
const HIDDEN = {
  layer: 'final',
  dtype: 'float32',
  width: 2,
  values: Float32Array.of(1, 2, 3, 4, 5, 6),
} as const;
const SAMPLED: SampledLabels = {
  counts: Int32Array.of(2, 1, 3),
  ids: Int32Array.of(7, 2, 0, 9, 4, 1),
  draws: Uint16Array.of(3, 1, 4, 1, 1, 2),
};

function collect(row: LabelledRow, labels: SoftLabels, more: Partial<LabelOptions> = {}) {
  const objective = { labels, divergence: { kind: 'forward-kl' } } as const;
  const base = { temperature: 1, temperatures: [2], vocabSize: 10, float: 'float64' } as const;
  const arrays = collectLabels([row], { objective, ...base, ...more });
  return {
    arrays,
    numbers: (name: string) => Array.from(arrays.teacher.get(name)!.data as ArrayLike<bigint>, Number),
  };
}

const refined = (normaliser: 'stored' | 'computed'): SoftLabels => ({
  kind: 'full',
  teacherHidden: 2,
  refinement: { k: 3, normaliser },
});

test('refined labels bring hidden states, ids and tail of the positions that count', () => {
  const row = makeRow({ topk: TOPK, hidden: new Map([['final', HIDDEN]]) });
  const { arrays, numbers } = collect(row, refined('stored'), { temperature: 2 });
  assert.deepEqual([...arrays.positions], [1, 3]);
  assert.deepEqual([...arrays.labels], [2n, 4n]);
  assert.deepEqual(numbers('teacher.hidden'), [1, 2, 5, 6]);
  assert.deepEqual(numbers('teacher.topk_ids'), [7, 2, 7, 9, 4, 1]);
  const [a, b] = [Math.sqrt(0.5) * Math.exp(-0.75), Math.sqrt(0.25) * Math.exp(-0.75)];
  const ours = numbers('teacher.topk_logprobs');
  expectClose(ours.slice(0, 3), [Math.log(a), Math.log(b), ABSENT_LOGPROB], { absolute: 1e-6, where: 'logprobs' });
  expectClose(numbers('teacher.tail_logprob').slice(0, 1), [Math.log(1 - a - b)], { absolute: 1e-6, where: 'tail' });
});

test('a computed normaliser comes with T = 1, and with no tail where rounding could have made it', () => {
  const row = makeRow({ topk: TOPK, hidden: new Map([['final', HIDDEN]]) });
  const { numbers } = collect(row, refined('computed'), { temperature: 3 });
  const tails = numbers('teacher.tail_logprob');
  expectClose(tails, [Math.log(0.25), ABSENT_LOGPROB], { absolute: 1e-6, where: 'tail' });
  expectClose(numbers('teacher.topk_logprobs').slice(0, 2), p(0.5, 0.25), { absolute: 1e-6, where: 'logprobs' });
});

test('ids that are left out move to the tail, whatever their place among the entries', () => {
  const row = makeRow({ topk: TOPK });
  const labels = { kind: 'topk', k: 3, tail: 'bucket', isWhole: false } as const;
  const { numbers } = collect(row, labels, { vocabSize: 7 });
  assert.deepEqual(numbers('teacher.topk_ids'), [2, 2, 2, 4, 1, 4]);
  expectClose(numbers('teacher.tail_logprob'), p(0.75, 0.5 + 1e-6), { absolute: 1e-6, where: 'tail' });
});

test('more entries than the graph has room for are not cut in silence', () => {
  const labels = { kind: 'topk', k: 2, tail: 'bucket', isWhole: false } as const;
  assert.throws(() => collect(makeRow({ topk: TOPK }), labels), /more than 2 entries/);
});

test('sampled labels are shares of the draws, of the ids that take part', () => {
  const row = makeRow({ sampled: SAMPLED });
  const labels = { kind: 'sampled' } as const;
  const whole = collect(row, labels, { sampledTemperature: 1 });
  assert.deepEqual(whole.numbers('teacher.sampled_ids'), [7, 2, 7, 9, 4, 1]);
  const weights = [...p(0.75, 0.25), ABSENT_LOGPROB, ...p(0.25, 0.25, 0.5)];
  expectClose(whole.numbers('teacher.sampled_logweights'), weights, { absolute: 1e-12, where: 'weights' });
  const cut = collect(row, labels, { sampledTemperature: 1, vocabSize: 7 });
  const fewer = [0, ABSENT_LOGPROB, ABSENT_LOGPROB, ...p(1 / 3, 2 / 3), ABSENT_LOGPROB];
  expectClose(cut.numbers('teacher.sampled_logweights'), fewer, { absolute: 1e-12, where: 'weights of fewer ids' });
  assert.deepEqual(cut.numbers('teacher.sampled_ids'), [2, 2, 2, 4, 1, 4]);
});

test('draws of another temperature are weighed by p over the proposal', () => {
  const logprobs = Float32Array.from(p(0.5, 0.25, 1, 0.5, 0.3, 0.2));
  const row = makeRow({ sampled: { ...SAMPLED, logprobs } });
  const { numbers } = collect(row, { kind: 'sampled' }, { temperature: 1, sampledTemperature: 2 });
  // c · p / √p, normalised.
  const scores = [3 * Math.sqrt(0.5), Math.sqrt(0.25)];
  const total = scores[0]! + scores[1]!;
  const ours = numbers('teacher.sampled_logweights').slice(0, 2);
  expectClose(ours, p(...scores.map((score) => score / total)), { absolute: 1e-6, where: 'weights' });
  assert.throws(
    () => collect(makeRow({ sampled: SAMPLED }), { kind: 'sampled' }, { temperature: 1, sampledTemperature: 2 }),
    /no logprobs/,
  );
});
