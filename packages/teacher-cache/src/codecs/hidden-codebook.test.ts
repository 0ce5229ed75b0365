import assert from 'node:assert/strict';
import { randomUniforms } from '@stillhouse/testing';
import fc from 'fast-check';
import { describe, it } from 'vitest';
import { decodeStates, fitCoordinateCoder, measureCodedBytes, openHiddenCoder } from './hidden-codebook.ts';
import { FREQUENCY_SUM, makeSymbolTable } from './rans.ts';

/** Codes of coordinates whose sizes span ten octaves, Laplace distributed. */
function randomCodes(seed: number, positions: number, rank: number): Int16Array {
  const random = randomUniforms(seed);
  return Int16Array.from({ length: positions * rank }, (_, i) => {
    const scale = 2 ** (8 - (18 * (i % rank)) / rank);
    return Math.round(-Math.sign(random() - 0.5) * scale * Math.log(1 - random()));
  });
}

describe('coded hidden states', () => {
  it('come back whatever the codes are, from any sample that the coder was fitted to', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 9 }),
        fc.nat({ max: 5 }),
        fc.nat({ max: 5 }),
        fc.infiniteStream(fc.oneof(fc.integer({ min: -3, max: 3 }), fc.integer({ min: -32_768, max: 32_767 }))),
        (rank, sampled, positions, stream) => {
          const take = (count: number) => Int16Array.from({ length: count * rank }, () => stream.next().value!);
          const coder = openHiddenCoder(fitCoordinateCoder(take(sampled), rank));
          const codes = take(positions);
          assert.deepEqual(coder.decode(coder.encode(codes), positions), codes);
        },
      ),
      { numRuns: 300 },
    );
  });

  it('take what their entropy is, within two percent', () => {
    const rank = 96;
    const fitted = fitCoordinateCoder(randomCodes(1, 2000, rank), rank);
    const codes = randomCodes(2, 500, rank);
    const estimate = measureCodedBytes(codes, fitted);
    const bytes = openHiddenCoder(fitted).encode(codes).length;
    assert.ok(Math.abs(bytes / estimate - 1) < 0.002, `${bytes} bytes, estimated ${estimate}`);
    let entropyBits = 0;
    for (let c = 0; c < rank; c++) {
      const scale = 2 ** (8 - (18 * c) / rank);
      const share = (level: number) =>
        level === 0
          ? 1 - Math.exp(-0.5 / scale)
          : 0.5 * Math.exp(-(Math.abs(level) - 0.5) / scale) * (1 - Math.exp(-1 / scale));
      for (let level = -4000; level <= 4000; level++) {
        const p = share(level);
        if (p > 0) entropyBits -= 500 * p * Math.log2(p);
      }
    }
    assert.ok(bytes < 1.02 * (entropyBits / 8), `${bytes} bytes for an entropy of ${entropyBits / 8}`);
  });

  it('are refused when cut, lengthened, changed or of another length', () => {
    const rank = 24;
    const codes = randomCodes(3, 12, rank);
    const coder = openHiddenCoder(fitCoordinateCoder(codes, rank));
    const bytes = coder.encode(codes);
    for (let length = 0; length < bytes.length; length++)
      assert.throws(() => coder.decode(bytes.subarray(0, length), 12), RangeError);
    assert.throws(() => coder.decode(new Uint8Array([...bytes, 0]), 12), RangeError);
    assert.throws(() => coder.decode(bytes, 11), RangeError);
    let missed = 0;
    for (let at = 0; at < bytes.length; at++) {
      const changed = bytes.slice();
      changed[at]! ^= 1;
      try {
        coder.decode(changed, 12);
        missed++;
      } catch (error) {
        assert.ok(error instanceof RangeError);
      }
    }
    // The last state is a check of its own; the sha256 of the file is the one to rely on.
    assert.ok(missed <= bytes.length / 50, `${missed} of ${bytes.length}`);
  });

  it('refuse tables that are none', () => {
    assert.throws(() => makeSymbolTable(Uint16Array.of(1, FREQUENCY_SUM)), RangeError);
    assert.throws(() => makeSymbolTable(Uint16Array.of(1, 2)), RangeError);
    assert.throws(() => makeSymbolTable(Uint16Array.of(0, FREQUENCY_SUM)), RangeError);
  });

  it('are rebuilt as mean + codes · decode', () => {
    const decode = Float32Array.of(1, 0.5, -2, 0, 3, 4);
    const codebook = {
      width: 3,
      rank: 2,
      mean: Float32Array.of(10, 20, 30),
      encode: new Float32Array(6),
      decode,
      coder: fitCoordinateCoder(new Int16Array(), 2),
    };
    assert.deepEqual(decodeStates(Int16Array.of(2, -1, 0, 0), codebook), Float32Array.of(12, 18, 22, 10, 20, 30));
  });
});
