import assert from 'node:assert/strict';
import { test } from 'vitest';
import { narrowToBfloat16, narrowToFloat16, widenBfloat16, widenFloat16 } from './index.ts';

const everyPattern = Uint16Array.from({ length: 65536 }, (_, i) => i);

test('every bfloat16 and float16 value survives a round trip', () => {
  for (const [widen, narrow] of [
    [widenBfloat16, narrowToBfloat16],
    [widenFloat16, narrowToFloat16],
  ] as const) {
    const wide = widen(everyPattern);
    const back = narrow(wide);
    for (let i = 0; i < 65536; i++) {
      if (Number.isNaN(wide[i])) assert.ok(Number.isNaN(widen(back.subarray(i, i + 1))[0]), `pattern ${i}`);
      else assert.equal(back[i], i, `pattern ${i}`);
    }
  }
});

test('narrowing rounds to nearest, ties to even', () => {
  assert.deepEqual(
    [...narrowToBfloat16(Float32Array.of(1 + 2 ** -8, 1 + 3 * 2 ** -8, 3.4e38))],
    [0x3f80, 0x3f82, 0x7f80],
  );
  const halves = Float32Array.of(1 + 2 ** -11, 1 + 3 * 2 ** -11, 65519.996, 65520, 2 ** -25, 3 * 2 ** -25, -0);
  assert.deepEqual([...narrowToFloat16(halves)], [0x3c00, 0x3c02, 0x7bff, 0x7c00, 0, 2, 0x8000]);
});

test('float16 narrowing is never further off than a neighbour', () => {
  const values = Float32Array.from({ length: 20000 }, (_, i) => Math.sin(i * 12.9898) * 2 ** ((i % 40) - 25));
  const narrowed = narrowToFloat16(values);
  const back = widenFloat16(narrowed);
  for (let i = 0; i < values.length; i++) {
    const miss = Math.abs(back[i]! - values[i]!);
    for (const step of [-1, 1]) {
      const neighbour = widenFloat16(Uint16Array.of(narrowed[i]! + step))[0]!;
      assert.ok(!(Math.abs(neighbour - values[i]!) < miss), `${values[i]} became ${back[i]}, ${neighbour} is nearer`);
    }
  }
});
