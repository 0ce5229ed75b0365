import { FREQUENCY_SUM, makeSymbolTable, openRansDecoder, openRansEncoder, type SymbolTable } from './rans.ts';

/**
 * How hidden states of one layer are transform-coded. With q = round((h - mean) · encode), whole numbers,
 * h ≈ mean + q · decode. The transform makes the coordinates uncorrelated and the metric that matters (for `final` how
 * far the teacher's distribution moves) the plain distance, so one step for all coordinates spends the bits where they
 * count: reverse water-filling (Cover and Thomas, Elements of Information Theory, 10.3.3).
 */
export interface HiddenCodebook {
  /** D, the teacher's hidden size. */
  readonly width: number;
  /** r, coordinates that are kept. */
  readonly rank: number;
  /** [D] */
  readonly mean: Float32Array;
  /** [D, r] */
  readonly encode: Float32Array;
  /** [r, D] */
  readonly decode: Float32Array;
  readonly coder: CoordinateCoder;
}

/** The statistics of the coordinates. */
export interface CoordinateCoder {
  /** [r] which of `tables` a coordinate uses. */
  readonly tableOf: Uint8Array;
  /** [r] so many low bits of q are stored as they are, 0 to 8: in a coordinate this wide they are noise. */
  readonly lowBits: Uint8Array;
  /**
   * Frequencies of the symbols, sum 2^14, each at least 1. Of 2m + 2 symbols, number s is q >> lowBits = s - m, and the
   * last announces any other value in 16 bits.
   */
  readonly tables: readonly Uint16Array[];
}

/** Values of q are clipped to what an escaped symbol can hold. */
export const LARGEST_CODE = 32_767;

/** Above this mean size of q, low bits are split off. */
const LARGEST_MEAN = 16;
/** Tables for each factor of two in the mean size of q. */
const TABLES_PER_OCTAVE = 4;
/** Below this mean size a coordinate is as good as silent, all of them share a table. */
const LEAST_MEAN = 2 ** -12;
/** Weight of the model distribution beside what was counted. */
const PRIOR_COUNT = 32;

/**
 * Fits the coder to codes of a sample.
 * @param codes [positions, rank]
 */
export function fitCoordinateCoder(codes: Int16Array, rank: number): CoordinateCoder {
  const positions = codes.length / rank;
  const meanSizes = new Float64Array(rank);
  for (let i = 0; i < codes.length; i++) meanSizes[i % rank]! += Math.abs(codes[i]!);
  const lowBits = new Uint8Array(rank);
  const bins = new Int32Array(rank);
  for (let c = 0; c < rank; c++) {
    // A coordinate that was never seen off zero in the sample may be elsewhere.
    let mean = (meanSizes[c]! + 0.5) / (positions + 1);
    while (mean > LARGEST_MEAN && lowBits[c]! < 8) {
      lowBits[c]! += 1;
      mean /= 2;
    }
    bins[c] = Math.round(TABLES_PER_OCTAVE * Math.log2(Math.max(mean, LEAST_MEAN)));
  }
  const used = [...new Set(bins)].sort((a, b) => a - b);
  const tableOf = Uint8Array.from(bins, (bin) => used.indexOf(bin));
  const counts = used.map(() => new Map<number, number>());
  for (let i = 0; i < codes.length; i++) {
    const c = i % rank;
    const level = codes[i]! >> lowBits[c]!;
    const seen = counts[tableOf[c]!]!;
    seen.set(level, (seen.get(level) ?? 0) + 1);
  }
  const tables = used.map((bin, t) => fitTable(counts[t]!, 2 ** (bin / TABLES_PER_OCTAVE)));
  return { tableOf, lowBits, tables };
}

/** Frequencies of levels: what was counted, blended with a Laplace distribution of the given mean size. */
function fitTable(counts: ReadonlyMap<number, number>, mean: number): Uint16Array {
  const total = [...counts.values()].reduce((sum, count) => sum + count, 0);
  const model = laplaceOf(mean);
  const share = (level: number) => ((counts.get(level) ?? 0) + PRIOR_COUNT * model(level)) / (total + PRIOR_COUNT);
  // Levels that would get less than one slot are left to the escape symbol.
  let reach = 1;
  while (reach < 127 && share(reach + 1) + share(-reach - 1) > 1 / FREQUENCY_SUM) reach++;
  const shares = Array.from({ length: 2 * reach + 1 }, (_, s) => share(s - reach));
  shares.push(Math.max(0, 1 - shares.reduce((sum, one) => sum + one, 0)));
  return apportion(shares);
}

/** Probability that a Laplace variable of mean size `mean`, once rounded, is at a level. */
function laplaceOf(mean: number): (level: number) => number {
  // E|round(X)| of a Laplace variable of scale b is 1 / (2 sinh(1 / 2b)).
  const scale = 1 / (2 * Math.asinh(1 / (2 * mean)));
  const zero = 1 - Math.exp(-0.5 / scale);
  return (level) =>
    level === 0 ? zero : 0.5 * Math.exp(-(Math.abs(level) - 0.5) / scale) * (1 - Math.exp(-1 / scale));
}

/**
 * Whole frequencies of sum 2^14, each at least 1, the nearest to the shares; the largest takes what rounding leaves.
 */
function apportion(shares: readonly number[]): Uint16Array {
  const frequencies = Uint16Array.from(shares, (share) => Math.max(1, Math.floor(share * FREQUENCY_SUM)));
  const rest = FREQUENCY_SUM - frequencies.reduce((sum, one) => sum + one, 0);
  const largest = frequencies.indexOf(Math.max(...frequencies));
  frequencies[largest]! += rest;
  return frequencies;
}

/** What codes would take, without coding them. @returns bytes, summed over all positions */
export function measureCodedBytes(codes: Int16Array, { tableOf, lowBits, tables }: CoordinateCoder): number {
  const rank = tableOf.length;
  const costs = tables.map((table) => Float64Array.from(table, (frequency) => -Math.log2(frequency / FREQUENCY_SUM)));
  let bits = 0;
  for (let i = 0; i < codes.length; i++) {
    const c = i % rank;
    const cost = costs[tableOf[c]!]!;
    const reach = (cost.length - 2) / 2;
    const level = codes[i]! >> lowBits[c]!;
    const isEscaped = Math.abs(level) > reach;
    bits += isEscaped ? cost.at(-1)! + 16 : cost[level + reach]! + lowBits[c]!;
  }
  return bits / 8;
}

/** Codes and decodes rows of one layer; tables are laid out once. */
export interface HiddenCoder {
  /** @param codes [positions, rank] */
  encode(codes: Int16Array): Uint8Array;
  /** @throws RangeError if the bytes are not `positions` positions */
  decode(bytes: Uint8Array, positions: number): Int16Array;
}

/** @throws RangeError if a table is not one */
export function openHiddenCoder({ tableOf, lowBits, tables: frequencies }: CoordinateCoder): HiddenCoder {
  const rank = tableOf.length;
  const tables = frequencies.map(makeSymbolTable);
  const reaches = frequencies.map((table) => (table.length - 2) / 2);
  return {
    encode: (codes) => {
      const coder = openRansEncoder();
      // Backwards, for the decoder gives back the last first; so do the parts of one number.
      for (let i = codes.length - 1; i >= 0; i--) {
        const c = i % rank;
        const table = tables[tableOf[c]!] as SymbolTable;
        const reach = reaches[tableOf[c]!]!;
        const bits = lowBits[c]!;
        const level = codes[i]! >> bits;
        if (Math.abs(level) > reach) {
          const word = codes[i]! + 32_768;
          coder.putBits(word & 0xff, 8);
          coder.putBits(word >> 8, 8);
          coder.put(2 * reach + 1, table);
        } else {
          if (bits > 0) coder.putBits(codes[i]! & ((1 << bits) - 1), bits);
          coder.put(level + reach, table);
        }
      }
      return coder.finish();
    },
    decode: (bytes, positions) => {
      const coder = openRansDecoder(bytes);
      const codes = new Int16Array(positions * rank);
      let i = 0;
      for (let position = 0; position < positions; position++) {
        for (let c = 0; c < rank; c++) {
          const t = tableOf[c]!;
          const reach = reaches[t]!;
          const symbol = coder.next(tables[t]!);
          if (symbol === 2 * reach + 1) codes[i++] = ((coder.nextBits(8) << 8) | coder.nextBits(8)) - 32_768;
          else if (lowBits[c] === 0) codes[i++] = symbol - reach;
          else codes[i++] = ((symbol - reach) << lowBits[c]!) | coder.nextBits(lowBits[c]!);
        }
      }
      coder.finish();
      return codes;
    },
  };
}

/**
 * Codes of states, rounded and clipped.
 * @param states [positions, width]
 * @returns [positions, rank]
 */
export function encodeStates(states: Float32Array, { width, rank, mean, encode }: HiddenCodebook): Int16Array {
  const positions = states.length / width;
  const codes = new Int16Array(positions * rank);
  const sums = new Float64Array(rank);
  for (let position = 0; position < positions; position++) {
    sums.fill(0);
    for (let channel = 0; channel < width; channel++) {
      const centred = states[position * width + channel]! - mean[channel]!;
      for (let c = 0; c < rank; c++) sums[c]! += centred * encode[channel * rank + c]!;
    }
    for (let c = 0; c < rank; c++)
      codes[position * rank + c] = Math.max(-LARGEST_CODE, Math.min(LARGEST_CODE, Math.round(sums[c]!)));
  }
  return codes;
}

/**
 * States from codes, in float32.
 * @param codes [positions, rank]
 * @returns [positions, width]
 */
export function decodeStates(codes: Int16Array, { width, rank, mean, decode }: HiddenCodebook): Float32Array {
  const positions = codes.length / rank;
  const states = new Float32Array(positions * width);
  const sums = new Float64Array(width);
  for (let position = 0; position < positions; position++) {
    sums.set(mean);
    for (let c = 0; c < rank; c++) {
      const code = codes[position * rank + c]!;
      if (code === 0) continue;
      const row = c * width;
      for (let channel = 0; channel < width; channel++) sums[channel]! += code * decode[row + channel]!;
    }
    states.set(sums, position * width);
  }
  return states;
}
