import assert from 'node:assert/strict';
import fc from 'fast-check';
import { test } from 'vitest';
import { planBatches } from './batch-plan.ts';
import { packSequences } from './token-batch.ts';

test('every sequence is in one batch, and no batch is larger than the budget or its one sequence', () => {
  const lengths = fc.array(fc.integer({ min: 1, max: 60 }), { maxLength: 40 });
  fc.assert(
    fc.property(lengths, fc.integer({ min: 1, max: 200 }), (all, budget) => {
      const batches = planBatches(all, budget);
      assert.deepEqual(
        batches.flat().sort((a, b) => a - b),
        all.map((_, i) => i),
      );
      for (const batch of batches) {
        const { rows, length } = packSequences(batch.map((i) => new Int32Array(all[i]!)));
        assert.ok(rows * length <= budget || rows === 1, `${rows} x ${length} for ${budget}`);
      }
    }),
  );
});

test('short sequences fill the gaps beside long ones, and long ones do not stretch short ones', () => {
  assert.deepEqual(planBatches([10, 3, 7, 6, 4], 20), [
    [0, 1, 2],
    [3, 4],
  ]);
  assert.deepEqual(planBatches([100, 5, 5, 5, 5], 20), [[0], [1, 2, 3, 4]]);
  assert.deepEqual(planBatches([], 20), []);
});
