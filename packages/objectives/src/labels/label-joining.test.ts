import assert from 'node:assert/strict';
import { test } from 'vitest';
import { ABSENT_LOGPROB, joinLabels } from '../index.ts';
import type { LabelArrays } from './label-arrays.ts';

const part = (rows: readonly number[], width: number, start: number): LabelArrays => ({
  count: rows.length,
  rows: Int32Array.from(rows),
  positions: Int32Array.from(rows.keys()),
  labels: BigInt64Array.from(rows, (_, n) => BigInt(start + n)),
  weights: Float64Array.from(rows, (_, n) => start + n),
  teacher: new Map([
    [
      'teacher.sampled_ids',
      { dtype: 'int64', width, data: BigInt64Array.from({ length: rows.length * width }, (_, i) => BigInt(start + i)) },
    ],
    [
      'teacher.sampled_logweights',
      { dtype: 'float64', width, data: Float64Array.from({ length: rows.length * width }, (_, i) => -i) },
    ],
    ['teacher.tail_logprob', { dtype: 'float64', width: undefined, data: Float64Array.from(rows, (_, n) => -n - 0.5) }],
  ]),
  features: new Map([[3, { dtype: 'float64', width: 1, data: Float64Array.from(rows, () => start) }]]),
});

test('parts stand one behind the other, their rows counted on; entries that a part lacks are absent', () => {
  // The first part has three rows, the last without a label position.
  const joined = joinLabels([
    { labels: part([0, 1], 1, 10), rows: 3 },
    { labels: part([0], 2, 20), rows: 1 },
  ]);
  assert.equal(joined.count, 3);
  assert.deepEqual([...joined.rows], [0, 1, 3]);
  assert.deepEqual([...joined.positions], [0, 1, 0]);
  assert.deepEqual([...joined.labels], [10n, 11n, 20n]);
  assert.deepEqual([...joined.weights!], [10, 11, 20]);
  const ids = joined.teacher.get('teacher.sampled_ids')!;
  assert.deepEqual([ids.width, [...ids.data]], [2, [10n, 10n, 11n, 11n, 20n, 21n]]);
  const weights = joined.teacher.get('teacher.sampled_logweights')!;
  assert.deepEqual([weights.width, [...weights.data]], [2, [-0, ABSENT_LOGPROB, -1, ABSENT_LOGPROB, -0, -1]]);
  const tails = joined.teacher.get('teacher.tail_logprob')!;
  assert.deepEqual([tails.width, [...tails.data]], [undefined, [-0.5, -1.5, -0.5]]);
  assert.deepEqual([...joined.features!.get(3)!.data], [10, 10, 20]);
});

test('one part is what it was', () => {
  const labels = part([0, 2], 2, 5);
  assert.equal(joinLabels([{ labels, rows: 3 }]), labels);
});
