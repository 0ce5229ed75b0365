import { AssertionError } from 'node:assert';

/** Numbers by index: a typed array or a plain one. */
export type Numbers = ArrayLike<number>;

export interface Tolerance {
  /** Largest difference allowed; 0 if not given. */
  readonly absolute?: number;
  /** Largest difference allowed as a fraction of the expected value's size; added to `absolute`. 0 if not given. */
  readonly relative?: number;
  /** What is compared, for the message. */
  readonly where: string;
}

/**
 * Asserts |actual - expected| <= absolute + relative * |expected| for every element. NaN is never close to anything,
 * an infinity only to itself. The message names the element that exceeds its allowance by most, with both values.
 */
export function expectClose(actual: Numbers, expected: Numbers, tolerance: Tolerance): void {
  const { absolute = 0, relative = 0, where } = tolerance;
  requireSameLength(actual, expected, where);
  let outside = 0;
  let worstIndex = -1;
  let worstExcess = 0;
  for (let index = 0; index < expected.length; index++) {
    const difference = differenceAt(actual, expected, index);
    const allowed = absolute + relative * Math.abs(expected[index]!);
    if (difference === 0 || (Number.isFinite(difference) && difference <= allowed)) continue;
    outside += 1;
    const excess = Number.isFinite(difference) ? difference - allowed : Number.POSITIVE_INFINITY;
    if (worstIndex === -1 || excess > worstExcess) {
      worstIndex = index;
      worstExcess = excess;
    }
  }
  if (worstIndex === -1) return;
  fail(
    `${where}: ${outside} of ${expected.length} values are not close; worst at index ${worstIndex}: ` +
      `actual ${actual[worstIndex]}, expected ${expected[worstIndex]}, ` +
      `difference ${differenceAt(actual, expected, worstIndex)}, ` +
      `allowed ${absolute + relative * Math.abs(expected[worstIndex]!)}`,
    actual[worstIndex],
    expected[worstIndex],
  );
}

/** Absolute differences of two arrays of one length, summed up. */
interface DifferenceSummary {
  readonly mean: number;
  /** The 99.9 % quantile: the smallest difference that at least 99.9 % of the elements do not exceed. */
  readonly quantile999: number;
  readonly worst: number;
  readonly worstIndex: number;
}

/** Summarises |actual - expected|; a NaN or unequal infinity on either side counts as an infinite difference. */
function summarizeDifference(actual: Numbers, expected: Numbers, where = 'arrays'): DifferenceSummary {
  requireSameLength(actual, expected, where);
  const differences = Float64Array.from({ length: expected.length }, (_, index) =>
    differenceAt(actual, expected, index),
  );
  const worst = differences.reduce((largest, value) => Math.max(largest, value), 0);
  return {
    mean: differences.reduce((sum, value) => sum + value, 0) / Math.max(1, differences.length),
    quantile999: quantile(differences, 0.999),
    worst,
    worstIndex: differences.indexOf(worst),
  };
}

export interface DifferenceBounds {
  readonly mean?: number;
  readonly quantile999?: number;
  readonly worst?: number;
  readonly where: string;
}

/** Asserts each given bound on the differences of two arrays: the way to judge weights after Adam steps. */
export function expectSmallDifference(actual: Numbers, expected: Numbers, bounds: DifferenceBounds): DifferenceSummary {
  const summary = summarizeDifference(actual, expected, bounds.where);
  for (const key of ['mean', 'quantile999', 'worst'] as const) {
    const bound = bounds[key];
    if (bound === undefined || summary[key] <= bound) continue;
    const index = summary.worstIndex;
    fail(
      `${bounds.where}: ${key} of the difference is ${summary[key]}, allowed ${bound}; worst at index ${index}: ` +
        `actual ${actual[index]}, expected ${expected[index]}`,
      summary[key],
      bound,
    );
  }
  return summary;
}

/** The smallest value that at least `fraction` of the values do not exceed (no interpolation); 0 for no values. */
export function quantile(values: Numbers, fraction: number): number {
  const sorted = Float64Array.from(values).sort();
  const rank = Math.ceil(fraction * sorted.length) - 1;
  return sorted[Math.min(sorted.length - 1, Math.max(0, rank))] ?? 0;
}

function differenceAt(actual: Numbers, expected: Numbers, index: number): number {
  const a = actual[index]!;
  const b = expected[index]!;
  if (a === b) return 0;
  const difference = Math.abs(a - b);
  return Number.isNaN(difference) ? Number.POSITIVE_INFINITY : difference;
}

function requireSameLength(actual: Numbers, expected: Numbers, where: string): void {
  if (actual.length === expected.length) return;
  fail(`${where}: ${actual.length} values, expected ${expected.length}`, actual.length, expected.length);
}

function fail(message: string, actual: unknown, expected: unknown): never {
  throw new AssertionError({ message, actual, expected, operator: 'expectClose', stackStartFn: fail });
}
