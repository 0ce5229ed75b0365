import { fitCoordinateCoder, type HiddenCodebook, LARGEST_CODE, measureCodedBytes } from '@stillhouse/teacher-cache';
import { CholeskyDecomposition, EigenvalueDecomposition, Matrix } from 'ml-matrix';

/** Moments of the states of a layer, and the metric in which an error counts. */
export interface StateStatistics {
  /** D */
  readonly width: number;
  readonly positions: number;
  /** [D] */
  readonly mean: Float32Array;
  /** [D, D] */
  readonly covariance: Float64Array;
  /** [D, D] positive semi-definite; undefined where every direction counts the same. */
  readonly metric?: Float64Array;
}

/** Matrix products of float32 [D, D] matrices, done where they are fast. */
export type MultiplySquare = (a: Float32Array, b: Float32Array, transA: boolean) => Promise<Float32Array>;

/** A transform of full rank at a step of 1. */
export interface Transform {
  readonly width: number;
  readonly mean: Float32Array;
  /** [D, D] column j gives coordinate j: c = (h - mean) · encode. */
  readonly encode: Float32Array;
  /** [D, D] row j is what coordinate j adds: h = mean + c · decode. */
  readonly decode: Float32Array;
  /** [D] standard deviation of each coordinate, with what a small sample leaves open. */
  readonly deviations: Float64Array;
}

/** The share of the metric's mean eigenvalue that is added to all: directions that move nothing stay representable. */
const METRIC_RIDGE = 1e-4;
/** The covariance is blended with this many positions, in each dimension, of even spread. */
const PRIOR_POSITIONS_PER_CHANNEL = 0.02;

/**
 * Coordinates that are uncorrelated under the covariance and orthonormal under the metric: with M = L Lᵀ and
 * Lᵀ Σ L = Q Λ Qᵀ, encode = L Q and decode = (L⁻ᵀ Q)ᵀ.
 */
export async function fitTransform(statistics: StateStatistics, multiply: MultiplySquare): Promise<Transform> {
  const { width, mean, covariance, metric, positions } = statistics;
  const lower = metric === undefined ? undefined : factorise(metric, width);
  const inMetric =
    lower === undefined
      ? Float32Array.from(covariance)
      : await multiply(lower, await multiply(Float32Array.from(covariance), lower, false), true);
  const { realEigenvalues, eigenvectorMatrix } = new EigenvalueDecomposition(toMatrix(inMetric, width), {
    assumeSymmetric: true,
  });
  const order = [...realEigenvalues.keys()].sort((a, b) => realEigenvalues[b]! - realEigenvalues[a]!);
  const vectors = new Float32Array(width * width);
  for (let row = 0; row < width; row++)
    for (let column = 0; column < width; column++)
      vectors[row * width + column] = eigenvectorMatrix.get(row, order[column]!);
  const spread = order.map((index) => Math.max(0, realEigenvalues[index]!));
  const even = spread.reduce((sum, one) => sum + one, 0) / width;
  const prior = PRIOR_POSITIONS_PER_CHANNEL * width;
  const deviations = Float64Array.from(spread, (one) =>
    Math.sqrt((positions * one + prior * even) / (positions + prior)),
  );
  const encode = lower === undefined ? vectors : await multiply(lower, vectors, false);
  const inverse = lower === undefined ? vectors : solveTransposed(lower, vectors, width);
  return { width, mean, encode, decode: transpose(inverse, width), deviations };
}

/** Lower triangular L, row by row, with M + ridge = L Lᵀ. */
function factorise(metric: Float64Array, width: number): Float32Array {
  const matrix = toMatrix(metric, width);
  // Sums in another order differ in the last bits; the factorisation wants them equal.
  for (let row = 0; row < width; row++)
    for (let column = 0; column < row; column++) matrix.set(column, row, matrix.get(row, column));
  const ridge = (METRIC_RIDGE * matrix.trace()) / width;
  for (let i = 0; i < width; i++) matrix.set(i, i, matrix.get(i, i) + ridge);
  const { lowerTriangularMatrix } = new CholeskyDecomposition(matrix);
  return Float32Array.from(lowerTriangularMatrix.to1DArray());
}

/** X with Lᵀ X = B, from the last row up. */
function solveTransposed(lower: Float32Array, b: Float32Array, width: number): Float32Array {
  const x = Float64Array.from(b);
  for (let row = width - 1; row >= 0; row--) {
    const own = row * width;
    const pivot = lower[own + row]!;
    for (let column = 0; column < width; column++) x[own + column]! /= pivot;
    for (let above = 0; above < row; above++) {
      const factor = lower[own + above]!;
      if (factor === 0) continue;
      const target = above * width;
      for (let column = 0; column < width; column++) x[target + column]! -= factor * x[own + column]!;
    }
  }
  return Float32Array.from(x);
}

function transpose(matrix: Float32Array, width: number): Float32Array {
  const out = new Float32Array(matrix.length);
  for (let row = 0; row < width; row++)
    for (let column = 0; column < width; column++) out[column * width + row] = matrix[row * width + column]!;
  return out;
}

const toMatrix = (values: ArrayLike<number>, width: number) =>
  Matrix.from1DArray(width, width, values as unknown as number[]);

/** A coordinate whose deviation is below this share of the step is zero nearly always and is left out. */
const SILENT_SHARE = 0.2;
/** How near the bytes of the sample come to what was asked for. */
const BYTES_TOLERANCE = 0.005;

/**
 * The codebook whose step makes a position of the sample take so many bytes.
 * @param coordinates [positions, D] of the sample, by the transform at a step of 1
 * @param bytes for each position
 */
export function fitCodebook(transform: Transform, coordinates: Float32Array, bytes: number): HiddenCodebook {
  const { width, mean, deviations } = transform;
  const positions = coordinates.length / width;
  // Between a step above which everything is silent and one at which every coordinate takes 16 bits.
  let [fine, coarse] = [deviations[0]! / 2 ** 14 || 1e-12, deviations[0]! * 8 || 1];
  let found = quantise(transform, coordinates, Math.sqrt(fine * coarse));
  for (let round = 0; round < 24; round++) {
    const step = Math.sqrt(fine * coarse);
    found = quantise(transform, coordinates, step);
    const taken = positions === 0 ? bytes : measureCodedBytes(found.codes, found.coder) / positions;
    if (Math.abs(taken / bytes - 1) < BYTES_TOLERANCE) break;
    if (taken > bytes) fine = step;
    else coarse = step;
  }
  const { kept, step, coder } = found;
  const rank = kept.length;
  const encode = new Float32Array(width * rank);
  const decode = new Float32Array(rank * width);
  for (const [c, coordinate] of kept.entries()) {
    for (let channel = 0; channel < width; channel++) {
      encode[channel * rank + c] = transform.encode[channel * width + coordinate]! / step;
      decode[c * width + channel] = transform.decode[coordinate * width + channel]! * step;
    }
  }
  return { width, rank, mean, encode, decode, coder };
}

function quantise({ width, deviations }: Transform, coordinates: Float32Array, step: number) {
  const positions = coordinates.length / width;
  const loud = new Uint8Array(width);
  for (let c = 0; c < width; c++) if (deviations[c]! >= SILENT_SHARE * step) loud[c] = 1;
  for (let i = 0; i < coordinates.length; i++) if (Math.abs(coordinates[i]!) > step / 2) loud[i % width] = 1;
  const kept = [...loud.keys()].filter((c) => loud[c] === 1 || c === 0);
  const codes = new Int16Array(positions * kept.length);
  let i = 0;
  for (let position = 0; position < positions; position++) {
    for (const c of kept) {
      const code = Math.round(coordinates[position * width + c]! / step);
      codes[i++] = Math.max(-LARGEST_CODE, Math.min(LARGEST_CODE, code));
    }
  }
  return { kept, codes, step, coder: fitCoordinateCoder(codes, kept.length) };
}
