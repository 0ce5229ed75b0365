import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { type DataPosition, shuffledOrder, takeStepRows } from './data-order.ts';
import { learningRateAt } from './learning-rate.ts';

const lengths = fc.array(fc.integer({ min: 1, max: 50 }), { minLength: 1, maxLength: 40 });

test('an order is a permutation that depends on seed and epoch alone', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 200 }), fc.nat(), fc.nat({ max: 9 }), (count, seed, epoch) => {
      const order = shuffledOrder(count, seed, epoch);
      assert.deepEqual(
        [...order].sort((a, b) => a - b),
        [...new Int32Array(count).keys()],
      );
      assert.deepEqual(shuffledOrder(count, seed, epoch), order);
    }),
  );
  assert.notDeepEqual(shuffledOrder(100, 1, 0), shuffledOrder(100, 2, 0));
  assert.notDeepEqual(shuffledOrder(100, 1, 0), shuffledOrder(100, 1, 1));
});

test('steps one after the other use every row once an epoch, whatever the budget', () => {
  fc.assert(
    fc.property(lengths, fc.integer({ min: 1, max: 120 }), (rowLengths, batchTokens) => {
      const used: number[] = [];
      let position: DataPosition = { epoch: 0, consumed: 0 };
      while (used.length < 2 * rowLengths.length) {
        const { rows, next } = takeStepRows(rowLengths, 5, position, batchTokens);
        assert.ok(rows.reduce((sum, row) => sum + rowLengths[row]!, 0) >= batchTokens);
        used.push(...rows);
        position = next;
      }
      assert.deepEqual(used.slice(0, rowLengths.length), [...shuffledOrder(rowLengths.length, 5, 0)]);
      assert.deepEqual(used.slice(rowLengths.length, 2 * rowLengths.length), [
        ...shuffledOrder(rowLengths.length, 5, 1),
      ]);
    }),
  );
});

test('the rate warms up linearly, peaks, and ends at its share', () => {
  const schedule = { lr: 1, warmupSteps: 4, finalLrRatio: 0.1, steps: 24 };
  assert.deepEqual(
    [1, 2, 3, 4, 5].map((step) => learningRateAt(step, schedule)),
    [0.25, 0.5, 0.75, 1, 1],
  );
  assert.ok(Math.abs(learningRateAt(24, schedule) - 0.1) < 1e-12);
  const rates = Array.from({ length: 20 }, (_, i) => learningRateAt(5 + i, schedule));
  assert.ok(rates.every((rate, i) => i === 0 || rate < rates[i - 1]!));
  assert.equal(learningRateAt(1, { lr: 2, warmupSteps: 0, finalLrRatio: 0.1, steps: 1 }), 2);
});
