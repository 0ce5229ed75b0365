import assert from 'node:assert/strict';
import { expectClose } from '@stillhouse/testing';
import { test } from 'vitest';
import { estimateRatio } from './ratio-estimate.ts';

test('the mean is over tokens, not over rows', () => {
  const { mean } = estimateRatio([
    { sum: 1, tokens: 1 },
    { sum: 0, tokens: 3 },
  ]);
  assert.equal(mean, 0.25);
});

test('with rows of one length the standard error is that of the mean of the row means', () => {
  const means = [1, 2, 4, 7];
  const { mean, standardError } = estimateRatio(means.map((value) => ({ sum: value * 5, tokens: 5 })));
  const variance = means.reduce((sum, value) => sum + (value - 3.5) ** 2, 0) / 3;
  assert.equal(mean, 3.5);
  expectClose([standardError!], [Math.sqrt(variance / 4)], { absolute: 1e-12, where: 'standard error' });
});

test('rows of different length, by hand', () => {
  // Mean 8 / 4 = 2; residuals 4 - 2·1 = 2 and 4 - 2·3 = -2; √(2/1 · 8) / 4 = 1.
  const rows = [
    { sum: 4, tokens: 1 },
    { sum: 4, tokens: 3 },
  ];
  assert.deepEqual(estimateRatio(rows), { mean: 2, standardError: 1 });
});

test('one row has no standard error', () => {
  assert.deepEqual(estimateRatio([{ sum: 3, tokens: 2 }]), { mean: 1.5, standardError: null });
});
