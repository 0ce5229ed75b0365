import assert from 'node:assert/strict';
import fc from 'fast-check';
import { describe, it } from 'vitest';
import type { TopKLabels } from '../format/labelled-row.ts';
import { boundLogprobs, type LogprobDtype } from './logprob-codes.ts';
import { packTopK, roundTopK, unpackTopK } from './topk-packing.ts';
import { loadZstd } from './zstd.ts';

const zstd = await loadZstd();
const DTYPES: readonly LogprobDtype[] = ['float32', 'float16', 'uint16', 'uint8'];

/** Ragged labels of a real distribution over `vocabSize` ids, sometimes with next to no mass outside. */
const labelsOf = (vocabSize: number) =>
  fc
    .array(
      fc.record({
        logits: fc.array(fc.float({ min: -40, max: 40, noNaN: true }), { minLength: 1, maxLength: 12 }),
        outside: fc.float({ min: -60, max: 3, noNaN: true }),
        firstId: fc.nat({ max: vocabSize - 12 }),
      }),
      { maxLength: 8 },
    )
    .map((positions): TopKLabels => {
      const counts = positions.map(({ logits }) => logits.length);
      const ids = positions.flatMap(({ logits, firstId }) => logits.map((_, i) => firstId + i));
      const logprobs = positions.flatMap(({ logits, outside }) => {
        const sorted = [...logits].sort((a, b) => b - a);
        const top = Math.max(sorted[0]!, outside);
        const z = top + Math.log(sorted.reduce((sum, l) => sum + Math.exp(l - top), Math.exp(outside - top)));
        return sorted.map((l) => l - z);
      });
      const logZ = positions.flatMap((_, i) => [0, 1.5 * i, 4 + i]);
      return {
        counts: Int32Array.from(counts),
        ids: Int32Array.from(ids),
        logprobs: Float32Array.from(logprobs),
        logZ: Float32Array.from(logZ),
      };
    });

describe('packed top-k labels', () => {
  for (const vocabSize of [300, 151_936, 2 ** 25]) {
    it(`come back from a vocabulary of ${vocabSize}, each dtype within its stated error`, () => {
      fc.assert(
        fc.property(labelsOf(vocabSize), (labels) => {
          for (const dtype of DTYPES) {
            const packed = packTopK(labels, dtype, vocabSize, zstd);
            const shape = { positions: labels.counts.length, temperatures: 3, k: 12, vocabSize };
            const back = unpackTopK(packed, shape, dtype, zstd);
            assert.deepEqual(back.counts, labels.counts);
            assert.deepEqual(back.ids, labels.ids);
            assert.deepEqual(back, { ...roundTopK(labels, dtype), counts: back.counts, ids: back.ids });
            if (dtype === 'float32') assert.deepEqual(back, labels);
            checkError(labels, back, dtype);
          }
        }),
        { numRuns: 200 },
      );
    });
  }

  it('were, before they were rounded, within the bounds that are made of the rounded ones', () => {
    const logits = fc.array(fc.float({ min: -30, max: 0, noNaN: true }), { minLength: 1, maxLength: 300 });
    fc.assert(
      fc.property(logits, fc.float({ min: -60, max: 12, noNaN: true }), (given, outside) => {
        const sorted = [...given].sort((a, b) => b - a);
        const z = Math.log(sorted.reduce((sum, l) => sum + Math.exp(l), Math.exp(outside)));
        const exact = Float32Array.from(sorted, (l) => l - z);
        const labels = {
          counts: Int32Array.of(exact.length),
          ids: new Int32Array(exact.length),
          logprobs: exact,
          logZ: new Float32Array(0),
        };
        for (const dtype of DTYPES) {
          const rounded = roundTopK(labels, dtype).logprobs;
          for (const logprobs of [rounded, exact]) {
            const { low, high } = boundLogprobs(logprobs, dtype);
            exact.forEach((logprob, i) => {
              assert.ok(
                low[i]! <= logprob + 1e-5 && logprob <= high[i]! + 1e-5,
                `${dtype} ${low[i]} ${logprob} ${high[i]}`,
              );
            });
          }
          if (dtype !== 'uint8') continue;
          // As FORMAT.md says it.
          exact.forEach((logprob, i) => {
            const distance = exact[0]! - logprob;
            const most = Math.exp(distance / 4) / 120 + 0.03;
            if (distance < 19) assert.ok(Math.abs(rounded[i]! - logprob) < most, `${logprob} became ${rounded[i]}`);
          });
        }
      }),
      { numRuns: 300 },
    );
  });

  it('keep ids at V - 1, one entry, no positions', () => {
    const vocabSize = 151_936;
    const labels: TopKLabels = {
      counts: Int32Array.of(1),
      ids: Int32Array.of(vocabSize - 1),
      logprobs: Float32Array.of(-1e-7),
      logZ: Float32Array.of(0),
    };
    const empty: TopKLabels = {
      counts: new Int32Array(),
      ids: new Int32Array(),
      logprobs: new Float32Array(),
      logZ: new Float32Array(),
    };
    for (const dtype of DTYPES) {
      const shape = { temperatures: 1, k: 1, vocabSize };
      const back = unpackTopK(packTopK(labels, dtype, vocabSize, zstd), { ...shape, positions: 1 }, dtype, zstd);
      assert.deepEqual(back.ids, labels.ids);
      assert.ok(Math.abs(back.logprobs[0]! - labels.logprobs[0]!) < 1e-7);
      assert.deepEqual(
        unpackTopK(packTopK(empty, dtype, vocabSize, zstd), { ...shape, positions: 0 }, dtype, zstd),
        empty,
      );
    }
  });

  it('refuse every cut, every other shape, and survive any flipped byte', () => {
    const counts = new Int32Array(40).fill(8);
    const labels: TopKLabels = {
      counts,
      ids: Int32Array.from({ length: 320 }, (_, i) => (i * 7919) % 151_936),
      logprobs: Float32Array.from({ length: 320 }, (_, i) => -0.5 - (i % 8)),
      logZ: new Float32Array(40),
    };
    const shape = { positions: 40, temperatures: 1, k: 8, vocabSize: 151_936 };
    const packed = packTopK(labels, 'float16', 151_936, zstd);
    const unpack = (bytes: Uint8Array, changed: Partial<typeof shape> = {}) =>
      unpackTopK(bytes, { ...shape, ...changed }, 'float16', zstd);
    for (let length = 0; length < packed.length; length++)
      assert.throws(() => unpack(packed.subarray(0, length)), RangeError, `cut at ${length}`);
    assert.throws(() => unpack(new Uint8Array([...packed, 0])), RangeError);
    assert.throws(() => unpack(packed, { positions: 39 }), RangeError);
    assert.throws(() => unpack(packed, { k: 7 }), RangeError);
    assert.throws(() => unpack(packed, { temperatures: 2 }), RangeError);
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
});

function checkError(labels: TopKLabels, back: TopKLabels, dtype: LogprobDtype): void {
  let start = 0;
  for (const count of labels.counts) {
    const first = labels.logprobs[start]!;
    for (let i = start; i < start + count; i++) {
      const exact = labels.logprobs[i]!;
      const error = Math.abs(back.logprobs[i]! - exact);
      const distance = first - exact;
      if (dtype === 'float16')
        assert.ok(error <= Math.abs(exact) * 2 ** -11 + 1e-7, `${exact} became ${back.logprobs[i]}`);
      // Half a step at its own distance, as much again for the mass that all entries share.
      if (dtype === 'uint16' && distance < 63)
        assert.ok(error <= 0.0015 + 2e-7 * Math.abs(exact), `${exact} became ${back.logprobs[i]}`);
      if (dtype === 'uint8' && distance < 16)
        assert.ok(error <= Math.exp(distance / 4) / 120 + 0.02, `${exact} became ${back.logprobs[i]}`);
    }
    start += count;
  }
  labels.logZ.forEach((exact, i) => {
    assert.ok(Math.abs(back.logZ[i]! - exact) <= (dtype === 'float32' ? 0 : 2 ** -13 + 1e-6), `log_z ${exact}`);
  });
}
