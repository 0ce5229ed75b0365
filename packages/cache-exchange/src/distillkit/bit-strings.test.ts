import assert from 'node:assert/strict';
import fc from 'fast-check';
import { test } from 'vitest';
import { packBits, packedBytes, unpackBits } from './bit-strings.ts';

test('the first bit of each number comes first, and zeros fill the last byte', () => {
  const out = new Uint8Array(3);
  assert.equal(packBits([0b101, 0b011, 0b111, 0b000, 0b110], 3, out), 2);
  assert.deepEqual(out, Uint8Array.of(0b10101111, 0b10001100, 0));
});

test('numbers of 1 to 32 bits come back', () => {
  const cases = fc
    .integer({ min: 1, max: 32 })
    .chain((bits) => fc.tuple(fc.constant(bits), fc.array(fc.nat({ max: 2 ** Math.min(bits, 31) - 1 }))));
  fc.assert(
    fc.property(cases, fc.nat({ max: 3 }), ([bits, values], offset) => {
      const out = new Uint8Array(offset + packedBytes(values.length, bits));
      assert.equal(packBits(values, bits, out, offset), out.length - offset);
      assert.deepEqual([...unpackBits(out, offset, bits, values.length)], values);
    }),
  );
  const largest = new Uint8Array(8);
  packBits([2 ** 32 - 1, 2 ** 32 - 2], 32, largest);
  assert.deepEqual([...unpackBits(largest, 0, 32, 2)], [2 ** 32 - 1, 2 ** 32 - 2]);
});
