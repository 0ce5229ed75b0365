import assert from 'node:assert/strict';
import { test } from 'vitest';
import { type PlannedPolicy, recommend } from './plan-cache.ts';
import { cutTopK } from './policies.ts';

const policy = (name: string, bytesPerToken: number, cosine: number | undefined): PlannedPolicy =>
  ({
    name,
    flags: '',
    labels: 'full',
    bytesPerToken,
    totalBytes: 0,
    readBytes: 0,
    at: cosine === undefined ? {} : { 2: { meanGradientCosine: cosine } },
  }) as unknown as PlannedPolicy;

test('the nearest gradients within the budget are recommended, of equals the smallest', () => {
  const policies = [
    policy('small', 60, 0.98),
    policy('good', 260, 0.9993),
    policy('as good', 250, 0.99929),
    policy('best', 1600, 0.99999),
    policy('without labels', 10, undefined),
  ];
  const at = (budget: number) => recommend(policies, { budget, temperature: 2 })?.name;
  assert.equal(at(400), 'as good');
  assert.equal(at(2000), 'best');
  assert.equal(at(100), 'small');
  assert.equal(at(20), undefined);
});

test('entries are cut to a number or to a mass', () => {
  const labels = {
    counts: Int32Array.of(4, 3),
    ids: Int32Array.of(7, 8, 9, 10, 1, 2, 3),
    logprobs: Float32Array.from([0.5, 0.3, 0.1, 0.05, 0.995, 0.003, 0.001], Math.log),
    logZ: Float32Array.of(0, 0),
  };
  const ids = (form: Parameters<typeof cutTopK>[1]) => {
    const cut = cutTopK(labels, form);
    assert.equal(cut.ids.length, cut.logprobs.length);
    return [[...cut.counts], [...cut.ids]];
  };
  assert.deepEqual(ids({ k: 2 }), [
    [2, 2],
    [7, 8, 1, 2],
  ]);
  assert.deepEqual(ids({ k: 3, topP: 0.85, minK: 1 }), [
    [3, 1],
    [7, 8, 9, 1],
  ]);
  assert.deepEqual(ids({ k: 4, topP: 0.5, minK: 2 }), [
    [2, 2],
    [7, 8, 1, 2],
  ]);
  assert.deepEqual(ids({ k: 9, topP: 0.9999, minK: 1 }), [[4, 3], [...labels.ids]]);
});
