import assert from 'node:assert/strict';
import fc from 'fast-check';
import { test } from 'vitest';
import { flatIndex, packSequences, padSequences } from './token-batch.ts';

const sequences = fc.array(fc.array(fc.integer({ min: 1, max: 1000 }), { minLength: 1, maxLength: 12 }), {
  minLength: 1,
  maxLength: 12,
});

test('every token of every sequence stands where its placement says, and nothing else does', () => {
  fc.assert(
    fc.property(sequences, fc.boolean(), (lists, packed) => {
      const input = lists.map((list) => Int32Array.from(list));
      const batch = packed ? packSequences(input) : padSequences(input);
      const seen = new Set<number>();
      for (const placement of batch.placements) {
        input[placement.sequence]!.forEach((id, t) => {
          const at = flatIndex(batch, placement, t);
          assert.equal(batch.ids[at], BigInt(id));
          assert.equal(batch.positions[at], t);
          assert.equal(batch.segments[at], placement.sequence + 1);
          assert.ok(placement.column + t < batch.length);
          assert.ok(!seen.has(at));
          seen.add(at);
        });
      }
      for (let at = 0; at < batch.ids.length; at++) if (!seen.has(at)) assert.equal(batch.segments[at], 0);
      assert.ok(batch.rows <= input.length);
    }),
  );
});

test('packing uses no more rows than it must on an easy case', () => {
  const batch = packSequences([4, 3, 1, 2, 2].map((length) => new Int32Array(length).fill(7)));
  assert.equal(batch.length, 4);
  assert.equal(batch.rows, 3);
});
