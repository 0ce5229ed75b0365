import assert from 'node:assert/strict';
import fc from 'fast-check';
import { test } from 'vitest';
import { multiplyDims, resolveDim } from './dims.ts';

test('products of dimensions are canonical: order and grouping do not matter', () => {
  const dim = fc.oneof(fc.integer({ min: 1, max: 9 }), fc.constantFrom('B', 'T', 'N'));
  fc.assert(
    fc.property(dim, dim, dim, (a, b, c) => {
      assert.equal(multiplyDims(a, multiplyDims(b, c)), multiplyDims(multiplyDims(c, a), b));
      const values: Readonly<Record<string, number>> = { B: 2, T: 3, N: 5 };
      const sizeOf = (symbol: string) => values[symbol];
      const product = [a, b, c].reduce<number>((sum, one) => sum * resolveDim(one, sizeOf)!, 1);
      assert.equal(resolveDim(multiplyDims(a, b, c), sizeOf), product);
    }),
  );
  assert.equal(multiplyDims('T', 2, 'B', 3), '6*B*T');
  assert.equal(multiplyDims('T', 0), 0);
  assert.equal(
    resolveDim('B*T', (symbol) => (symbol === 'B' ? 2 : undefined)),
    undefined,
  );
});
