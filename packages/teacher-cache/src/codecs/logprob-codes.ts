import { narrowToFloat16, widenFloat16 } from '@stillhouse/float-formats';

/**
 * How logprobs are kept, in packed labels:
 * - `float32`: bit for bit;
 * - `float16`: rounded to float16, relative error 2^-11;
 * - `uint16`: two bytes for the distance d below the position's first logprob, in steps of 2^-10 nats (error 2^-11), d
 *   ends at 64. The first logprob follows from the mass of all entries, kept as log odds in steps of 2^-12. Where
 *   student and teacher nearly agree this shows: float16 is off by 0.004 at a logprob of -10;
 * - `uint8`: one byte for the distance d below the position's first logprob, in steps that grow as exp(d / 4): where
 *   the probability is, the step is 1/64 nat (error at most 1/128), at d = 8 it is 0.12, and d ends at 22. The first
 *   logprob is not stored: it follows from the mass of all entries, which is, as log odds in float16. So the entries
 *   always add up to the right mass, and what is outside is right too.
 */
export type LogprobDtype = 'float32' | 'float16' | 'uint16' | 'uint8';

/** Whole numbers that stand for the logprobs of P positions. */
export interface LogprobCodes {
  /** One for each entry: bits of float32 or float16, or the `uint8` code. */
  readonly entries: Uint32Array;
  /**
   * For `uint8` and `uint16`: the log odds of the mass of the entries, one for each position, as {@link ODDS_BYTES} has
   * it.
   */
  readonly odds?: Uint32Array;
}

export const ENTRY_BYTES: Readonly<Record<LogprobDtype, number>> = { float32: 4, float16: 2, uint16: 2, uint8: 1 };
/**
 * Log odds are float16 bits for `uint8`, and signed steps of 2^-12 for `uint16`, where all bits set are no tail at all.
 */
export const ODDS_BYTES: Readonly<Record<LogprobDtype, number>> = { float32: 0, float16: 0, uint16: 3, uint8: 2 };

/** code = STEPS · (1 - exp(-d / SPREAD)): the step near d = 0 is SPREAD / STEPS nats. */
const SPREAD = 4;
const STEPS = 256;

/** Distance of each `uint8` code below the first logprob, in nats. */
const DISTANCE = Float64Array.from({ length: 256 }, (_, code) => -SPREAD * Math.log1p(-code / STEPS));

/** Steps of `uint16` in a nat, and of its log odds. */
const FINE_STEPS = 1024;
const ODDS_STEPS = 4096;
const ALL_MASS = 0xff_ffff;

/** How distances and log odds become whole numbers, and back. */
const CODECS = {
  uint8: {
    encode: (distance: number) => Math.min(255, Math.round(STEPS * -Math.expm1(-distance / SPREAD))),
    decode: (code: number) => DISTANCE[code]!,
    encodeOdds: (odds: Float32Array) => Uint32Array.from(narrowToFloat16(odds)),
    decodeOdds: (codes: Uint32Array) => Float64Array.from(widenFloat16(Uint16Array.from(codes))),
  },
  uint16: {
    encode: (distance: number) => Math.min(0xffff, Math.round(FINE_STEPS * distance)),
    decode: (code: number) => code / FINE_STEPS,
    encodeOdds: (odds: Float32Array) =>
      Uint32Array.from(odds, (value) => (value === Infinity ? ALL_MASS : zigzag(Math.round(value * ODDS_STEPS)))),
    decodeOdds: (codes: Uint32Array) =>
      Float64Array.from(codes, (code) => (code === ALL_MASS ? Infinity : unzigzag(code) / ODDS_STEPS)),
  },
} as const;

export function encodeLogprobs(logprobs: Float32Array, counts: Int32Array, dtype: LogprobDtype): LogprobCodes {
  if (dtype === 'float32') return { entries: new Uint32Array(logprobs.slice().buffer) };
  if (dtype === 'float16') return { entries: Uint32Array.from(narrowToFloat16(logprobs)) };
  const codec = CODECS[dtype];
  const entries = new Uint32Array(logprobs.length);
  const odds = new Float32Array(counts.length);
  let start = 0;
  for (const [position, count] of counts.entries()) {
    let mass = 0;
    for (let i = start; i < start + count; i++) {
      const distance = Math.max(0, logprobs[start]! - logprobs[i]!);
      entries[i] = codec.encode(distance);
      mass += Math.exp(logprobs[i]!);
    }
    odds[position] = mass < 1 ? Math.log(mass) - Math.log1p(-mass) : Infinity;
    start += count;
  }
  return { entries, odds: codec.encodeOdds(odds) };
}

export function decodeLogprobs({ entries, odds }: LogprobCodes, counts: Int32Array, dtype: LogprobDtype): Float32Array {
  if (dtype === 'float32') return new Float32Array(entries.slice().buffer);
  if (dtype === 'float16') return widenFloat16(Uint16Array.from(entries));
  const logprobs = new Float32Array(entries.length);
  const codec = CODECS[dtype];
  const logOdds = codec.decodeOdds(odds!);
  let start = 0;
  for (const [position, count] of counts.entries()) {
    let sum = 0;
    for (let i = start; i < start + count; i++) sum += Math.exp(-codec.decode(entries[i]!));
    const first = -Math.log1p(Math.exp(-logOdds[position]!)) - Math.log(sum);
    for (let i = start; i < start + count; i++) logprobs[i] = first - codec.decode(entries[i]!);
    start += count;
  }
  return logprobs;
}

/** What the logprobs of one position may have been before they were rounded; [count] each. */
export interface LogprobBounds {
  readonly low: Float64Array;
  readonly high: Float64Array;
}

/**
 * The stated errors of the dtypes as bounds. They hold for logprobs that are not rounded yet as well.
 * @param logprobs of one position, descending
 */
export function boundLogprobs(logprobs: Float32Array, dtype: LogprobDtype): LogprobBounds {
  if (dtype === 'uint8') return boundBytes(logprobs);
  if (dtype === 'uint16') return boundFine(logprobs);
  const error = (logprob: number) => (dtype === 'float32' ? 0 : Math.abs(logprob) * FLOAT16_ERROR + 2 ** -24);
  return {
    low: Float64Array.from(logprobs, (logprob) => logprob - error(logprob)),
    high: Float64Array.from(logprobs, (logprob) => logprob + error(logprob)),
  };
}

/** Half a unit in the last place of float16, with room for being taken of the rounded number. */
const FLOAT16_ERROR = 1.002 * 2 ** -11;

/** Half a step of an entry's own, as much for all of them together, and what the log odds miss the mass by. */
const FINE_ERROR = 1.01 / FINE_STEPS + 0.6 / ODDS_STEPS;

function boundFine(logprobs: Float32Array): LogprobBounds {
  const first = logprobs[0]!;
  return {
    // The last code stands for all that is further away.
    low: Float64Array.from(logprobs, (logprob) =>
      first - logprob > 0xfffe / FINE_STEPS ? -Infinity : logprob - FINE_ERROR,
    ),
    high: Float64Array.from(logprobs, (logprob) => logprob + FINE_ERROR),
  };
}

function boundBytes(logprobs: Float32Array): LogprobBounds {
  const first = logprobs[0]!;
  const distances = Float64Array.from(logprobs, (logprob) => first - logprob);
  const steps = distances.map((distance) => STEPS * Math.exp(-distance / SPREAD));
  const nearest = distances.map((distance, i) => Math.max(0, distance - SPREAD * Math.log1p(0.5 / steps[i]!)));
  // The last code stands for all that is further away.
  const furthest = distances.map((distance, i) =>
    steps[i]! < 1.5 ? Infinity : distance - SPREAD * Math.log1p(-0.5 / steps[i]!),
  );
  const sum = (values: Float64Array) => values.reduce((total, distance) => total + Math.exp(-distance), 0);
  const mass = Math.min(1, Math.exp(first) * sum(distances));
  const odds = mass < 1 ? Math.log(mass) - Math.log1p(-mass) : 0;
  const massError = (1 - mass) * (Math.abs(odds) * 1.1 * FLOAT16_ERROR + 2 ** -24);
  const firstLow = first - massError - Math.log(sum(nearest) / sum(distances));
  const firstHigh = first + massError + Math.log(sum(distances) / sum(furthest));
  return {
    low: furthest.map((distance) => firstLow - distance),
    high: nearest.map((distance) => firstHigh - distance),
  };
}

/** log_z is kept in steps of 2^-12 nats unless everything is float32: error 2^-13. */
const LOG_Z_STEPS = 4096;

export const encodeLogZ = (logZ: Float32Array, dtype: LogprobDtype): Uint32Array =>
  dtype === 'float32'
    ? new Uint32Array(logZ.slice().buffer)
    : Uint32Array.from(logZ, (value) => zigzag(Math.round(value * LOG_Z_STEPS)));

export const decodeLogZ = (codes: Uint32Array, dtype: LogprobDtype): Float32Array =>
  dtype === 'float32'
    ? new Float32Array(codes.slice().buffer)
    : Float32Array.from(codes, (code) => unzigzag(code) / LOG_Z_STEPS);

const zigzag = (value: number) => (value >= 0 ? 2 * value : -2 * value - 1);
const unzigzag = (code: number) => (code % 2 === 0 ? code / 2 : -(code + 1) / 2);
