import { createHash } from 'node:crypto';
import { philox4x32 } from './philox.ts';

/**
 * Fills an array with numbers in [0, 1), multiples of 2^-53, for a position of a row. They depend on the seed, the
 * row's id and the position alone: not on batches, partitions or other rows.
 * @param position in the row, not among its label positions
 */
export type UniformNumbers = (position: number, into: Float64Array) => void;

/**
 * The numbers of one row: Philox under the seed, counting draws in pairs, positions, and 64 bits of sha256 of the id.
 */
export function openUniformNumbers(seed: number, rowId: string): UniformNumbers {
  const hash = createHash('sha256').update(rowId, 'utf8').digest();
  const [row0, row1] = [hash.readUInt32LE(0), hash.readUInt32LE(4)];
  const [key0, key1] = [seed % 2 ** 32, Math.floor(seed / 2 ** 32)];
  const words = new Uint32Array(4);
  return (position, into) => {
    for (let i = 0; i < into.length; i += 2) {
      words.set([i / 2, position, row0, row1]);
      philox4x32(words, key0, key1);
      into[i] = toFraction(words[0]!, words[1]!);
      if (i + 1 < into.length) into[i + 1] = toFraction(words[2]!, words[3]!);
    }
  };
}

/** The upper 53 bits of two words as a fraction. */
const toFraction = (high: number, low: number) => ((high >>> 5) * 2 ** 26 + (low >>> 6)) / 2 ** 53;
