import assert from 'node:assert/strict';
import fc from 'fast-check';
import { test } from 'vitest';
import { openMulberry32 } from './mulberry32.ts';
import { seededNormals, seededUniform } from './seeded-arrays.ts';
import { shuffledOrder } from './shuffled-order.ts';
import { openUniformNumbers } from './uniform-numbers.ts';

test('an order is a permutation that depends on seed, epoch and source alone', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 200 }), fc.nat(), fc.nat({ max: 9 }), fc.nat({ max: 3 }), (count, ...of) => {
      const order = shuffledOrder(count, ...of);
      assert.deepEqual(
        [...order].sort((a, b) => a - b),
        [...new Int32Array(count).keys()],
      );
      assert.deepEqual(shuffledOrder(count, ...of), order);
    }),
  );
  assert.notDeepEqual(shuffledOrder(100, 1, 0), shuffledOrder(100, 2, 0));
  assert.notDeepEqual(shuffledOrder(100, 1, 0), shuffledOrder(100, 1, 1));
  assert.notDeepEqual(shuffledOrder(100, 1, 0), shuffledOrder(100, 1, 0, 1));
});

test('a seed keeps its numbers: runs, caches and data made with it are to come out the same', () => {
  assert.deepEqual(
    [...seededNormals(3, 0.02, 7, 3)],
    [0.018897125497460365, 0.003796887118369341, 0.014384289272129536],
  );
  assert.deepEqual([...seededUniform(2, 0.5, 7, 3)], [0.12851391732692719, -0.4684421420097351]);
  assert.deepEqual([...shuffledOrder(12, 7, 2, 1)], [2, 6, 4, 9, 0, 11, 10, 5, 7, 8, 3, 1]);
  const uniform = openMulberry32(7);
  assert.deepEqual([uniform(), uniform()], [0.011704753153026104, 0.06195825757458806]);
  const ofPosition = new Float64Array(3);
  openUniformNumbers(7, 'row')(2, ofPosition);
  assert.deepEqual([...ofPosition], [0.3076905959238354, 0.2892440172050189, 0.876706180214428]);
});
