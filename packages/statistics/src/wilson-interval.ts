import { StillhouseError } from '@stillhouse/errors';
import { NORMAL_QUANTILE_975 } from './normal-quantile.ts';

/** A share of successes with its interval, all in [0, 1]. */
export interface RateInterval {
  readonly rate: number;
  readonly low: number;
  readonly high: number;
}

/**
 * Wilson's score interval of a binomial rate (Wilson 1927), 95 % unless another `z` is given. Unlike the normal
 * approximation it stays inside [0, 1] and is sound at 0 and at all successes.
 * @throws StillhouseError INTERVAL_COUNTS for counts that are no whole numbers with 0 <= successes <= trials, trials >
 *   0
 */
export function wilsonInterval(successes: number, trials: number, z: number = NORMAL_QUANTILE_975): RateInterval {
  if (!Number.isInteger(successes) || !Number.isInteger(trials) || successes < 0 || trials < 1 || successes > trials) {
    throw new StillhouseError({
      code: 'INTERVAL_COUNTS',
      where: 'the interval of a rate',
      problem: 'these counts make no rate',
      expected: 'whole numbers, 0 <= successes <= trials and trials > 0',
      got: `${successes} of ${trials}`,
    });
  }
  const rate = successes / trials;
  const weight = (z * z) / trials;
  const centre = (rate + weight / 2) / (1 + weight);
  const half = (z / (1 + weight)) * Math.sqrt((rate * (1 - rate)) / trials + weight / (4 * trials));
  // The ends are exactly 0 and 1 at no and all successes; rounding must not move them.
  return {
    rate,
    low: successes === 0 ? 0 : Math.max(0, centre - half),
    high: successes === trials ? 1 : Math.min(1, centre + half),
  };
}
