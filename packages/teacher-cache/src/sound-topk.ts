import type { TopKPolicy } from './label-policy.ts';
import type { TopKLabels } from './labelled-row.ts';

/** What teachers of float32 arithmetic may miss by, in nats and as a share of probability. */
export const TOLERANCE = 1e-3;
/** How much narrower this quick check is, for the error of its exponentials; what is between has the slow ones. */
const NARROW_TOLERANCE = TOLERANCE - 1e-4;

/** exp(-d) is taken from a table in steps of 1 / EXP_STEPS and a cubic polynomial; error 4e-8 of itself, below EXP_END. */
const EXP_STEPS = 32;
const EXP_END = 128;
const expTable = Float64Array.from({ length: EXP_STEPS * EXP_END }, (_, i) => Math.exp(-i / EXP_STEPS));

/** exp(-steps / EXP_STEPS) for 0 <= steps < EXP_STEPS * EXP_END. */
function lookUpExp(steps: number): number {
  const step = steps | 0;
  const rest = (steps - step) * (1 / EXP_STEPS);
  return expTable[step]! * (1 - rest * (1 - rest * (0.5 - rest * (1 / 6))));
}

/** Whether the entries [start, end) of a position are surely as they must be. */
export type SoundCheck = (labels: TopKLabels, position: number, start: number, end: number) => boolean;

/**
 * A quick check of top-k labels, for nearly all of them: two passes over the entries, no exponential but from a table.
 * Where it says no, the checks that take a position apart say what is wrong, if anything is.
 * @returns undefined for a policy that it knows too little of: entries there for another reason than their rank, lossy
 *   logprobs, no temperature of 1
 */
export function openSoundCheck(policy: TopKPolicy, vocabSize: number): SoundCheck | undefined {
  const { temperatures, topP, pinnedIds = [], keepTarget = false, logprobDtype = 'float32' } = policy;
  const isByRank = topP === undefined && pinnedIds.length === 0 && !keepTarget;
  if (!isByRank || logprobDtype !== 'float32' || !temperatures.includes(1)) return undefined;
  const grid = [...temperatures.entries()].sort(([, a], [, b]) => b - a);
  const longest = EXP_END * Math.min(...temperatures);
  const seen = new Int32Array(Math.ceil(vocabSize / 32));
  const sums = new Float64Array(3);
  return ({ ids, logprobs, logZ }, position, start, end) => {
    if (!areDistinct(ids, start, end, vocabSize, seen) || !areDescending(logprobs, start, end)) return false;
    const first = logprobs[start]!;
    const distance = first - logprobs[end - 1]!;
    // No number that is not finite, nothing beyond the table.
    if (!(first <= NARROW_TOLERANCE && distance < longest)) return false;
    const tailSize = vocabSize - (end - start);
    let base = Number.NaN;
    for (const [index, temperature] of grid) {
      if (base !== 2 * temperature && base !== 4 * temperature) {
        base = temperature;
        sumPowers(logprobs, start, end, EXP_STEPS / base, sums);
      }
      const sum = sums[temperature === base ? 0 : 2 * temperature === base ? 1 : 2]!;
      const value = logZ[position * grid.length + index]!;
      if (!Number.isFinite(value)) return false;
      const slack = NARROW_TOLERANCE * Math.max(1, Math.abs(value));
      const whole = Math.exp(value - first / temperature);
      const tail = tailSize * lookUpExp(distance * (EXP_STEPS / temperature));
      // log a <= log b + slack wherever a <= b (1 + slack), which takes no logarithms.
      if (!(sum <= whole * (1 + slack) && whole <= (sum + tail) * (1 + slack))) return false;
      if (temperature !== 1) continue;
      if (!(Math.abs(value) <= NARROW_TOLERANCE && Math.exp(first) * sum <= 1 + NARROW_TOLERANCE)) return false;
    }
    return true;
  };
}

/** @param seen a bit an id, small enough to stay in the processor's first cache; all 0 before and after */
function areDistinct(ids: Int32Array, start: number, end: number, vocabSize: number, seen: Int32Array): boolean {
  let i = start;
  for (; i < end; i++) {
    const id = ids[i]!;
    if (id < 0 || id >= vocabSize) break;
    const word = seen[id >>> 5]!;
    const bit = 1 << (id & 31);
    if ((word & bit) !== 0) break;
    seen[id >>> 5] = word | bit;
  }
  for (let k = start; k < i; k++) seen[ids[k]! >>> 5] = 0;
  return i === end;
}

function areDescending(logprobs: Float32Array, start: number, end: number): boolean {
  for (let i = start + 1; i < end; i++) if (!(logprobs[i]! <= logprobs[i - 1]!)) return false;
  return true;
}

/** Σ exp(l_i - l_0) at temperature T = EXP_STEPS / scale, and at T / 2 and T / 4, whose powers are squares. */
function sumPowers(logprobs: Float32Array, start: number, end: number, scale: number, sums: Float64Array): void {
  const first = logprobs[start]!;
  let sum = 0;
  let sumOfSquares = 0;
  let sumOfFourths = 0;
  for (let i = start; i < end; i++) {
    const power = lookUpExp((first - logprobs[i]!) * scale);
    const square = power * power;
    sum += power;
    sumOfSquares += square;
    sumOfFourths += square * square;
  }
  sums[0] = sum;
  sums[1] = sumOfSquares;
  sums[2] = sumOfFourths;
}
