import { StillhouseError } from '@stillhouse/errors';
import { NORMAL_QUANTILE_975 } from './normal-quantile.ts';
import { estimateRatio, type RowSum } from './ratio-estimate.ts';

/** A mean with its 95 % interval; without one where there is too little to tell. */
export interface IntervalEstimate {
  readonly mean: number;
  readonly standardError: number | null;
  readonly interval: { readonly low: number; readonly high: number } | null;
}

/**
 * The mean over the tokens of the same rows in several runs that differ by their seed only. Two things vary: rows, as
 * in {@link estimateRatio} over the runs' mean, and seeds, by the variance of the runs' means over their number. Both
 * add up; the interval is Student's with Welch and Satterthwaite's degrees of freedom (Satterthwaite 1946, Biometrics
 * 2, 110-114). With one run what its seed has done to it is not in the interval.
 * @param runs each the sums of the same rows in the same order
 * @throws StillhouseError ROWS_DIFFER
 */
export function estimateRepeated(runs: readonly (readonly RowSum[])[]): IntervalEstimate {
  const [first = []] = runs;
  for (const rows of runs) {
    if (rows.length === first.length && rows.every(({ tokens }, at) => tokens === first[at]!.tokens)) continue;
    throw new StillhouseError({
      code: 'ROWS_DIFFER',
      where: 'the estimate over runs',
      problem: 'the runs were not measured on the same rows',
      expected: `${first.length} rows with the same tokens`,
      got: `${rows.length} rows`,
    });
  }
  const averaged = first.map(({ tokens }, at) => ({
    tokens,
    sum: runs.reduce((sum, rows) => sum + rows[at]!.sum, 0) / runs.length,
  }));
  const { mean, standardError: ofRows } = estimateRatio(averaged);
  if (ofRows === null) return { mean, standardError: null, interval: null };
  const means = runs.map((rows) => estimateRatio(rows).mean);
  const spread = means.reduce((sum, one) => sum + (one - mean) ** 2, 0);
  const bySeeds = runs.length < 2 ? 0 : spread / (runs.length - 1) / runs.length;
  const variance = ofRows ** 2 + bySeeds;
  const standardError = Math.sqrt(variance);
  if (variance === 0) return { mean, standardError, interval: { low: mean, high: mean } };
  const seeds = runs.length < 2 ? 0 : bySeeds ** 2 / (runs.length - 1);
  const degrees = variance ** 2 / (ofRows ** 4 / (first.length - 1) + seeds);
  const half = studentQuantile975(degrees) * standardError;
  return { mean, standardError, interval: { low: mean - half, high: mean + half } };
}

/**
 * The 97.5 % quantile of Student's distribution, within 0.8 % of it for whole numbers of degrees: the first two as they
 * are, the others by the expansion in 1/ν (Abramowitz and Stegun 26.7.5). Broken numbers of degrees are rounded down.
 */
export function studentQuantile975(degreesOfFreedom: number): number {
  const v = Math.max(1, Math.floor(degreesOfFreedom + 1e-9));
  if (v === 1) return 12.706204736432095;
  if (v === 2) return 4.302652729696142;
  const z = NORMAL_QUANTILE_975;
  return (
    z +
    (z ** 3 + z) / (4 * v) +
    (5 * z ** 5 + 16 * z ** 3 + 3 * z) / (96 * v ** 2) +
    (3 * z ** 7 + 19 * z ** 5 + 17 * z ** 3 - 15 * z) / (384 * v ** 3)
  );
}
