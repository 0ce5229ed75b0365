import assert from 'node:assert/strict';
import fc from 'fast-check';
import { test } from 'vitest';
import type { SampledLabels } from '../format/labelled-row.ts';
import { packSampled, unpackSampled } from './sampled-packing.ts';
import { loadZstd } from './zstd.ts';

const zstd = await loadZstd();

/** Positions of `draws` draws each over ids that go up to V - 1. */
const sampledOf = (vocabSize: number, draws: number) =>
  fc
    .array(
      fc.array(fc.oneof(fc.nat({ max: vocabSize - 1 }), fc.constantFrom(0, vocabSize - 1)), {
        minLength: draws,
        maxLength: draws,
      }),
      { maxLength: 8 },
    )
    .map((positions): SampledLabels => {
      const counted = positions.map((drawn) => {
        const byId = new Map<number, number>();
        for (const id of drawn) byId.set(id, (byId.get(id) ?? 0) + 1);
        return [...byId];
      });
      return {
        counts: Int32Array.from(counted, (entries) => entries.length),
        ids: Int32Array.from(counted.flatMap((entries) => entries.map(([id]) => id))),
        draws: Uint16Array.from(counted.flatMap((entries) => entries.map(([, count]) => count))),
      };
    });

test('sampled labels come back: no positions, one draw, many, ids at V - 1', () => {
  for (const vocabSize of [1, 300, 151_936, 2 ** 25]) {
    for (const draws of [1, 2, 50]) {
      fc.assert(
        fc.property(sampledOf(vocabSize, draws), (labels) => {
          const shape = { positions: labels.counts.length, draws, vocabSize };
          assert.deepEqual(unpackSampled(packSampled(labels, vocabSize, zstd), shape, zstd), labels);
        }),
        { numRuns: 40 },
      );
    }
  }
});

test('damaged sampled labels are refused or read as such labels; what they claim is bounded', () => {
  const counts = new Int32Array(40).fill(5);
  const ids = Int32Array.from({ length: 200 }, (_, i) => (i * 7919) % 151_936);
  const labels = { counts, ids, draws: new Uint16Array(200).fill(10) };
  const shape = { positions: 40, draws: 50, vocabSize: 151_936 };
  const packed = packSampled(labels, shape.vocabSize, zstd);
  const unpack = (bytes: Uint8Array, changed: Partial<typeof shape> = {}) =>
    unpackSampled(bytes, { ...shape, ...changed }, zstd);
  for (let length = 0; length < packed.length; length++)
    assert.throws(() => unpack(packed.subarray(0, length)), RangeError, `cut at ${length}`);
  assert.throws(() => unpack(new Uint8Array([...packed, 0])), RangeError);
  assert.throws(() => unpack(packed, { positions: 41 }), RangeError);
  assert.throws(() => unpack(packed, { draws: 4 }), /5 ids, allowed are 1 to 4/);
  for (let at = 0; at < packed.length; at++) {
    const flipped = packed.slice();
    flipped[at]! ^= 0x41;
    try {
      assert.equal(unpack(flipped).counts.length, 40);
    } catch (error) {
      assert.ok(error instanceof RangeError, `byte ${at}: ${error}`);
    }
  }
});
