import type { TopKPolicy } from '../format/label-policy.ts';
import type { TopKLabels } from '../format/labelled-row.ts';
import { areDistinct, quickExp, sumPowers } from './topk-passes.ts';

/** What teachers of float32 arithmetic may miss by, in nats and as a share of probability. */
export const TOLERANCE = 1e-3;
/** How much narrower this quick check is, for the error of its exponentials; what is between has the slow ones. */
const NARROW_TOLERANCE = TOLERANCE - 1e-4;

/** Numbers far apart are left to the slow checks. */
const LARGEST_DISTANCE = 128;

/** Whether the entries [start, end) of a position are surely as they must be. */
export type SoundCheck = (labels: TopKLabels, position: number, start: number, end: number) => boolean;

/** A temperature of the grid, and where its sum comes from. */
interface GridPoint {
  readonly index: number;
  readonly temperature: number;
  /** Its sum is that of the base's powers, their squares or their fourths; a new base is summed first. */
  readonly base: number;
  readonly isNewBase: boolean;
  readonly sum: 0 | 1 | 2;
}

function planGrid(temperatures: readonly number[]): readonly GridPoint[] {
  let base = Number.NaN;
  return [...temperatures.entries()]
    .sort(([, a], [, b]) => b - a)
    .map(([index, temperature]) => {
      const isNewBase = base !== temperature && base !== 2 * temperature && base !== 4 * temperature;
      if (isNewBase) base = temperature;
      return { index, temperature, base, isNewBase, sum: temperature === base ? 0 : 2 * temperature === base ? 1 : 2 };
    });
}

/**
 * A quick check of top-k labels, for nearly all of them: two passes over the entries.
 * Where it says no, the checks that take a position apart say what is wrong, if anything is.
 * @returns undefined for a policy that it knows too little of: entries there for another reason than their rank, lossy
 *   logprobs, no temperature of 1
 */
export function openSoundCheck(policy: TopKPolicy, vocabSize: number): SoundCheck | undefined {
  const { temperatures, topP, pinnedIds = [], keepTarget = false, logprobDtype = 'float32' } = policy;
  const isByRank = topP === undefined && pinnedIds.length === 0 && !keepTarget;
  if (!isByRank || logprobDtype !== 'float32' || !temperatures.includes(1)) return undefined;
  const grid = planGrid(temperatures);
  const longest = LARGEST_DISTANCE * Math.min(...temperatures);
  const sums = new Float64Array(3);
  return (labels, position, start, end) => {
    const size = end - start;
    const { ids, logprobs, logZ } = labels;
    const first = logprobs[start]!;
    const distance = first - logprobs[end - 1]!;
    // No number that is not finite, and none that powers of 2 go too far down for.
    if (!(first <= NARROW_TOLERANCE && distance < longest)) return false;
    if (!areDistinct(ids, start, end, vocabSize)) return false;
    let leastPower = 0;
    for (let point = 0; point < grid.length; point++) {
      const { index, temperature, base, isNewBase, sum: which } = grid[point]!;
      if (isNewBase) {
        if (!sumPowers(logprobs, [start, end], base, sums)) return false;
        leastPower = quickExp(-distance / base);
      }
      const sum = sums[which]!;
      const square = leastPower * leastPower;
      const least = which === 0 ? leastPower : which === 1 ? square : square * square;
      const value = logZ[position * grid.length + index]!;
      if (!Number.isFinite(value)) return false;
      const slack = NARROW_TOLERANCE * Math.max(1, Math.abs(value));
      const whole = quickExp(value - first / temperature);
      // log a <= log b + slack wherever a <= b (1 + slack), which takes no logarithms.
      if (!(sum <= whole * (1 + slack) && whole <= (sum + (vocabSize - size) * least) * (1 + slack))) return false;
      if (temperature !== 1) continue;
      if (!(Math.abs(value) <= NARROW_TOLERANCE)) return false;
      // The mass, sum exp(first), is sum exp(value) / whole; of so small a value three terms are enough.
      if (!(sum * (1 + value + value * value * 0.5) <= whole * (1 + NARROW_TOLERANCE))) return false;
    }
    return true;
  };
}
