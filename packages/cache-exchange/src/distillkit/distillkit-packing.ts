import { packBits, packedBytes, unpackBits } from './bit-strings.ts';
import { type DistillKitConfig, idBits, type QuantizationBin, TERM_BYTES } from './distillkit-config.ts';
import { createPolynomialFit } from './polynomial-fit.ts';
import { readTerms, roundTo, writeTerms } from './term-dtypes.ts';

/** Packs and unpacks the top k of one position exactly as DistillKit 1.0 lays it out. */
export interface DistillKitPacking {
  /** Bytes of a position in `compressed_logprobs`. */
  readonly logprobBytes: number;
  /** Bytes of a position in `bytepacked_indices`. */
  readonly indexBytes: number;
  /**
   * @param ids [k]
   * @param logprobs [k] descending, finite
   */
  pack(ids: ArrayLike<number>, logprobs: ArrayLike<number>, logprobsOut: Uint8Array, indicesOut: Uint8Array): void;
  /** [k] float32 values, as DistillKit reads them; approximated ones need not descend. */
  unpackLogprobs(bytes: Uint8Array): Float64Array;
  /** [k] */
  unpackIds(bytes: Uint8Array): Float64Array;
}

/** @throws StillhouseError DISTILLKIT_CONFIG_INVALID */
export function createDistillKitPacking(config: DistillKitConfig): DistillKitPacking {
  const { d, k, exactK, exactDtype, terms, termDtype, bins, deltaEncoding, errorDiffusion } = config;
  const bits = idBits(d);
  const polynomial = terms.length > 0 && k > exactK ? createPolynomialFit(config) : undefined;
  const binBytes = ({ scaleDtype, elementBits, elements }: QuantizationBin) =>
    TERM_BYTES[scaleDtype] + packedBytes(elements, elementBits);
  const logprobBytes =
    exactK * TERM_BYTES[exactDtype] +
    terms.length * TERM_BYTES[termDtype] +
    bins.reduce((sum, bin) => sum + binBytes(bin), 0);

  function packLogprobs(logprobs: ArrayLike<number>, out: Uint8Array): void {
    const values = deltaEncoding
      ? takeDifferences(Float32Array.from(logprobs), errorDiffusion)
      : Float64Array.from(Float32Array.from(logprobs));
    let at = writeTerms(exactDtype, values.subarray(0, exactK), out, 0);
    let residual = values.subarray(exactK, k);
    if (polynomial !== undefined) {
      const coefficients = roundTo(termDtype, polynomial.fit(residual));
      at += writeTerms(termDtype, coefficients, out, at);
      const approximation = polynomial.evaluate(coefficients);
      residual = residual.map((value, i) => Math.fround(value - approximation[i]!));
    } else {
      at += terms.length * TERM_BYTES[termDtype];
    }
    let start = 0;
    const carry = { error: 0 };
    for (const bin of bins) {
      const part = residual.subarray(start, start + bin.elements);
      const { scale, levels } = quantise(part, bin, errorDiffusion ? carry : undefined);
      at += writeTerms(bin.scaleDtype, [scale], out, at);
      at += packBits(levels, bin.elementBits, out, at);
      start += bin.elements;
    }
  }

  return {
    logprobBytes,
    indexBytes: packedBytes(k, bits),
    pack: (ids, logprobs, logprobsOut, indicesOut) => {
      packLogprobs(logprobs, logprobsOut);
      packBits(ids, bits, indicesOut);
    },
    unpackLogprobs: (bytes) => {
      const exact = readTerms(exactDtype, bytes, 0, exactK);
      let at = exactK * TERM_BYTES[exactDtype];
      const coefficients = readTerms(termDtype, bytes, at, terms.length);
      at += terms.length * TERM_BYTES[termDtype];
      const residual = new Float64Array(k - exactK);
      let start = 0;
      for (const bin of bins) {
        const [scale] = readTerms(bin.scaleDtype, bytes, at, 1);
        const levels = unpackBits(bytes, at + TERM_BYTES[bin.scaleDtype], bin.elementBits, bin.elements);
        residual.set(dequantise(levels, scale!, bin), start);
        at += binBytes(bin);
        start += bin.elements;
      }
      const rounded = roundTo(exactDtype, residual);
      const sum = polynomial?.evaluate(coefficients);
      const approximate = sum === undefined ? rounded : rounded.map((value, i) => Math.fround(value + sum[i]!));
      const values = Float64Array.from([...exact, ...approximate]);
      return deltaEncoding ? roundTo(exactDtype, addUp(values)) : values;
    },
    unpackIds: (bytes) => unpackBits(bytes, 0, bits, k),
  };
}

/** Each logprob less the one before, in float32; with diffusion each rounding error goes into the next. */
function takeDifferences(logprobs: Float32Array, diffuse: boolean): Float64Array {
  let error = 0;
  return Float64Array.from(logprobs, (logprob, i) => {
    const difference = i === 0 ? logprob : logprob - logprobs[i - 1]!;
    const rounded = Math.fround(difference + error);
    if (diffuse) error += difference - rounded;
    return rounded;
  });
}

function addUp(values: Float64Array): Float64Array {
  let sum = 0;
  return values.map((value) => {
    sum = Math.fround(sum + Math.fround(value));
    return sum;
  });
}

function levelRange(bits: number): readonly [low: number, high: number] {
  return bits === 1 ? [0, 1] : [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1];
}

function quantise(values: Float64Array, bin: QuantizationBin, carry: { error: number } | undefined) {
  const most = values.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);
  const step = most === 0 ? 1 : Math.fround(most / (bin.elementBits === 1 ? 1 : 2 ** (bin.elementBits - 1)));
  const scale = roundTo(bin.scaleDtype, [step])[0]!;
  const [low, high] = levelRange(bin.elementBits);
  const levels = values.map((value) => {
    // A scale too small for its dtype is 0, and so is all it scales.
    const scaled = (scale === 0 ? 0 : Math.fround(value / scale)) + (carry?.error ?? 0);
    const level = Math.min(high, Math.max(low, roundHalfToEven(scaled)));
    if (carry !== undefined) carry.error = Math.fround(scaled - level);
    return level - low;
  });
  return { scale, levels };
}

function dequantise(levels: Float64Array, scale: number, { elementBits, scaleDtype }: QuantizationBin): Float64Array {
  const [low] = levelRange(elementBits);
  const round = scaleDtype === 'float64' ? (value: number) => value : Math.fround;
  return levels.map((level) => round((elementBits === 1 ? 2 * level - 1 : level + low) * scale));
}

function roundHalfToEven(value: number): number {
  const rounded = Math.round(value);
  return rounded - value === 0.5 && rounded % 2 !== 0 ? rounded - 1 : rounded;
}
