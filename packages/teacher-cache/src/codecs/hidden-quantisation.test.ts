import assert from 'node:assert/strict';
import { narrowToFloat16, widenFloat16 } from '@stillhouse/float-formats';
import fc from 'fast-check';
import { test } from 'vitest';
import { dequantiseHidden, labelPositions, measureChannelRms, quantiseHidden, quantiseHiddenGroups } from '../index.ts';

test('int8 states are never off by more than half a level', () => {
  const finite = fc.float({ min: -1e4, max: 1e4, noNaN: true });
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 6 }), fc.array(finite, { minLength: 6, maxLength: 60 }), (width, numbers) => {
      const states = Float32Array.from(numbers.slice(0, numbers.length - (numbers.length % width)));
      const rms = measureChannelRms(states, width);
      const labels = quantiseHidden('final', states, rms);
      const back = dequantiseHidden(labels, rms);
      for (const [i, state] of states.entries()) {
        const level = labels.tokenScale![Math.floor(i / width)]! * rms[i % width]!;
        assert.ok(Math.abs(back[i]! - state) <= level * 0.5001 + 1e-37, `${state} became ${back[i]} at level ${level}`);
        assert.ok(Math.abs(labels.values[i]!) <= 127);
      }
    }),
  );
});

test('int8 states in groups are never off by more than 0.51 of the scale of their group', () => {
  const finite = fc.float({ min: -1e5, max: 1e5, noNaN: true });
  fc.assert(
    fc.property(
      fc.array(finite, { minLength: 256, maxLength: 256 }),
      fc.float({ min: 0, max: 1, noNaN: true }),
      (numbers, faint) => {
        const states = Float32Array.from(numbers, (number, i) => (i < 128 ? number : number * faint * 1e-6));
        const labels = quantiseHiddenGroups('final', states, 128);
        const scales = widenFloat16(labels.groupScale!);
        assert.equal(scales.length, 4);
        for (const [i, value] of dequantiseHidden(labels).entries()) {
          const scale = scales[Math.floor(i / 64)]!;
          assert.ok(
            scale > 0 && Math.abs(value - states[i]!) <= 0.51 * scale,
            `${states[i]} became ${value} at ${scale}`,
          );
          assert.ok(Math.abs(labels.values[i]!) <= 127);
        }
      },
    ),
  );
});

test('the largest state of a position is at level 127, ties go to even, zeros stay zeros with a scale above 0', () => {
  const rms = Float32Array.of(1, 1, 1, 1);
  const { values, tokenScale } = quantiseHidden(3, Float32Array.of(127, 0.5, 1.5, -2.5, 0, 0, 0, 0), rms);
  assert.deepEqual([...values], [127, 0, 2, -2, 0, 0, 0, 0]);
  assert.equal(tokenScale![0], 1);
  assert.ok(tokenScale![1]! > 0);
  const scaled = quantiseHidden(3, Float32Array.of(1, 8), Float32Array.of(1, 8));
  assert.deepEqual([...scaled.values], [127, 127]);
});

test('the RMS of a channel is over positions, and never 0', () => {
  const rms = measureChannelRms(Float32Array.of(3, 0, 4, 0), 2);
  assert.equal(rms[0], Math.fround(Math.sqrt(12.5)));
  assert.ok(rms[1]! > 0);
});

test('float16 and float32 states come back as they were stored', () => {
  const states = Float32Array.of(1.5, -2, 0.25, 1024);
  const float16 = { layer: 'final', dtype: 'float16', width: 2, values: narrowToFloat16(states) } as const;
  assert.deepEqual(dequantiseHidden(float16), states);
  assert.equal(dequantiseHidden({ ...float16, dtype: 'float32', values: states }), states);
  const scaled = quantiseHidden('final', states, Float32Array.of(1, 1));
  assert.throws(() => dequantiseHidden(scaled), TypeError);
  assert.throws(() => dequantiseHidden(scaled, Float32Array.of(1)), TypeError);
});

test('label positions are one before their tokens', () => {
  const positions = (mask: number[], policy: 'response' | 'all') => [...labelPositions(Uint8Array.from(mask), policy)];
  assert.deepEqual(positions([0, 0, 1, 0, 1], 'response'), [1, 3]);
  assert.deepEqual(positions([0, 0, 1, 0, 1], 'all'), [0, 1, 2, 3]);
  assert.deepEqual(positions([0], 'all'), []);
  assert.deepEqual(positions([0, 0], 'response'), []);
});
