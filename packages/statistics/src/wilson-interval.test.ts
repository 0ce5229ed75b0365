import assert from 'node:assert/strict';
import { isStillhouseError } from '@stillhouse/errors';
import fc from 'fast-check';
import { test } from 'vitest';
import { wilsonInterval } from './wilson-interval.ts';

test('the interval has its published values', () => {
  // Newcombe 1998, table I, method 3 (score without continuity correction).
  const published: readonly (readonly [number, number, number, number])[] = [
    [81, 263, 0.2553, 0.3662],
    [15, 148, 0.0624, 0.1605],
    [0, 20, 0, 0.1611],
    [1, 29, 0.0061, 0.1718],
  ];
  for (const [successes, trials, low, high] of published) {
    const interval = wilsonInterval(successes, trials);
    assert.equal(interval.low.toFixed(4), low.toFixed(4));
    assert.equal(interval.high.toFixed(4), high.toFixed(4));
  }
});

test('the ends solve the score equation, lie around the rate and mirror', () => {
  const z = 1.959963984540054;
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 5000 }), fc.nat(5000), (trials, drawn) => {
      const successes = drawn % (trials + 1);
      const { rate, low, high } = wilsonInterval(successes, trials);
      assert.ok(0 <= low && low <= rate && rate <= high && high <= 1);
      for (const end of [low, high]) {
        if (end === 0 || end === 1) continue;
        assert.ok(Math.abs((rate - end) ** 2 - (z * z * end * (1 - end)) / trials) < 1e-9);
      }
      const mirrored = wilsonInterval(trials - successes, trials);
      assert.ok(Math.abs(1 - high - mirrored.low) < 1e-12);
    }),
  );
});

test('counts that make no rate are refused', () => {
  const cases: readonly (readonly [number, number])[] = [
    [0, 0],
    [-1, 5],
    [6, 5],
    [1.5, 5],
    [Number.NaN, 5],
  ];
  for (const [successes, trials] of cases) {
    assert.throws(
      () => wilsonInterval(successes, trials),
      (error) => isStillhouseError(error, 'INTERVAL_COUNTS'),
    );
  }
});
