import assert from 'node:assert/strict';
import { test } from 'vitest';
import { philox4x32 } from './philox.ts';
import { openUniformNumbers } from './uniform-numbers.ts';

test("philox gives the words of Random123's known answers", () => {
  const cases = [
    ['00000000 00000000 00000000 00000000', '00000000 00000000', '6627e8d5 e169c58d bc57ac4c 9b00dbd8'],
    ['ffffffff ffffffff ffffffff ffffffff', 'ffffffff ffffffff', '408f276d 41c83b0e a20bc7c6 6d5451fd'],
    ['243f6a88 85a308d3 13198a2e 03707344', 'a4093822 299f31d0', 'd16cfe09 94fdcceb 5001e420 24126ea1'],
  ] as const;
  const parse = (text: string) => Uint32Array.from(text.split(' '), (word) => Number.parseInt(word, 16));
  for (const [counter, key, expected] of cases) {
    const words = parse(counter);
    const [key0, key1] = parse(key) as unknown as [number, number];
    philox4x32(words, key0, key1);
    assert.deepEqual(words, parse(expected));
  }
});

const take = (seed: number, rowId: string, position: number, count = 5) => {
  const numbers = new Float64Array(count);
  openUniformNumbers(seed, rowId)(position, numbers);
  return [...numbers];
};

test('numbers depend on seed, row and position, and on nothing else', () => {
  const base = take(1, 'row', 3);
  assert.deepEqual(take(1, 'row', 3), base);
  assert.deepEqual(take(1, 'row', 3, 9).slice(0, 5), base, 'more draws begin with the same');
  const others = [take(2, 'row', 3), take(1 + 2 ** 32, 'row', 3), take(1, 'wor', 3), take(1, 'row', 4)];
  const all = [base, ...others].flat();
  assert.equal(new Set(all).size, all.length);
});

test('numbers are even over [0, 1)', () => {
  const counts = new Array<number>(64).fill(0);
  const total = 64_000;
  for (let position = 0; position < total / 50; position++) {
    for (const number of take(7, 'a row', position, 50)) {
      assert.ok(number >= 0 && number < 1);
      counts[Math.floor(number * 64)]! += 1;
    }
  }
  const chiSquare = counts.reduce((sum, count) => sum + (count - total / 64) ** 2 / (total / 64), 0);
  // 63 degrees of freedom: 99.99 % of even numbers stay below 111.
  assert.ok(chiSquare > 25 && chiSquare < 111, `chi-square ${chiSquare}`);
});
