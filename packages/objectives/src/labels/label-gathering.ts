import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { LabelledRow, SampledLabels, TopKLabels } from '@stillhouse/teacher-cache';
import { ABSENT_LOGPROB } from './label-distributions.ts';

export type FloatArray = Float32Array | Float64Array;

export const makeFloats = (float: FloatDtype, length: number): FloatArray =>
  float === 'float64' ? new Float64Array(length) : new Float32Array(length);

/** A position of some row that counts in the loss. */
export interface Target {
  readonly row: number;
  readonly position: number;
  /** Index among the positions of the row that have labels stored. */
  readonly stored: number;
}

/** Where each position's entries begin in the ragged arrays of a row; one more number at the end. */
function startsOf(counts: Int32Array): Int32Array {
  const starts = new Int32Array(counts.length + 1);
  counts.forEach((count, i) => {
    starts[i + 1] = starts[i]! + count;
  });
  return starts;
}

function requireLabels<Labels>(name: string, labelled: readonly LabelledRow[], of: (row: LabelledRow) => Labels) {
  return labelled.map((one) => {
    const labels = of(one);
    if (labels === undefined) throw new Error(`row ${one.row.id} was read without its ${name} labels`);
    return labels as NonNullable<Labels>;
  });
}

export interface GatheredTopK {
  /** [N, k]; entries that a position lacks repeat its first id. */
  readonly ids: BigInt64Array;
  /** [N, k] at the temperature asked for; `ABSENT_LOGPROB` where a position has fewer entries. */
  readonly logprobs: FloatArray;
  /** [N] log-probability of all else; `ABSENT_LOGPROB` where it is not above `leastTail`. */
  readonly tails: FloatArray;
}

/**
 * Top-k labels of the targets at a temperature of the cache's grid or at 1, where log_z is 0 by definition.
 * @param temperatures the cache's grid
 * @param vocabSize ids from here on are left out: their mass goes to the tail
 * @param leastTail mass outside up to this counts as none
 */
export function gatherTopK(
  labelled: readonly LabelledRow[],
  targets: readonly Target[],
  options: {
    readonly k: number;
    readonly temperature: number;
    readonly temperatures: readonly number[];
    readonly vocabSize: number;
    readonly float: FloatDtype;
    readonly leastTail?: number;
  },
): GatheredTopK {
  const { k, temperature, temperatures, vocabSize, float, leastTail = 0 } = options;
  const ids = new BigInt64Array(targets.length * k);
  const logprobs = makeFloats(float, targets.length * k).fill(ABSENT_LOGPROB);
  const tails = makeFloats(float, targets.length);
  const gridIndex = temperatures.indexOf(temperature);
  if (gridIndex < 0 && temperature !== 1) throw new Error(`log_z is not known at T = ${temperature}`);
  const rows = requireLabels('top-k', labelled, ({ topk }): TopKLabels | undefined => topk);
  const starts = rows.map(({ counts }) => startsOf(counts));
  targets.forEach(({ row, stored }, n) => {
    const topk = rows[row]!;
    const logZ = temperature === 1 ? 0 : topk.logZ[stored * temperatures.length + gridIndex]!;
    let [filled, mass] = [0, 0];
    for (let i = starts[row]![stored]!; i < starts[row]![stored + 1]!; i++) {
      if (topk.ids[i]! >= vocabSize) continue;
      if (filled === k) throw new Error(`row ${labelled[row]!.row.id} has a position of more than ${k} entries`);
      const logprob = topk.logprobs[i]! / temperature - logZ;
      ids[n * k + filled] = BigInt(topk.ids[i]!);
      logprobs[n * k + filled] = logprob;
      mass += Math.exp(logprob);
      filled += 1;
    }
    // An absent entry repeats an id of the row: ids stay distinct in effect, and its probability is zero.
    ids.fill(ids[n * k]!, n * k + filled, (n + 1) * k);
    tails[n] = 1 - mass > leastTail ? Math.log1p(-mass) : ABSENT_LOGPROB;
  });
  return { ids, logprobs, tails };
}

export interface GatheredSamples {
  /** The most entries of a position. */
  readonly width: number;
  /** [N, width]; entries that a position lacks repeat its first id. */
  readonly ids: BigInt64Array;
  /** [N, width] logarithms of weights that add up to 1 at each position; `ABSENT_LOGPROB` where there are fewer. */
  readonly logWeights: FloatArray;
}

/**
 * Sampled labels of the targets as an empirical distribution at `temperature`. Where the draws were taken at another
 * one, each count is weighed by p at `temperature` over p at the draws' and all are normalised (importance sampling
 * from a tempered proposal, arXiv 2503.16870); normalised weights are unbiased only as draws become many.
 * @param drawnAt temperature of the draws
 * @param vocabSize ids from here on are left out
 * @throws Error where draws of another temperature come without logprobs
 */
export function gatherSamples(
  labelled: readonly LabelledRow[],
  targets: readonly Target[],
  options: {
    readonly temperature: number;
    readonly drawnAt: number;
    readonly vocabSize: number;
    readonly float: FloatDtype;
  },
): GatheredSamples {
  const { temperature, drawnAt, vocabSize, float } = options;
  const rows = requireLabels('sampled', labelled, ({ sampled }): SampledLabels | undefined => sampled);
  const starts = rows.map(({ counts }) => startsOf(counts));
  const width = targets.reduce((most, { row, stored }) => Math.max(most, rows[row]!.counts[stored]!), 1);
  const ids = new BigInt64Array(targets.length * width);
  const logWeights = makeFloats(float, targets.length * width).fill(ABSENT_LOGPROB);
  const exponent = 1 / temperature - 1 / drawnAt;
  targets.forEach(({ row, stored }, n) => {
    const { ids: drawn, draws, logprobs } = rows[row]!;
    if (exponent !== 0 && logprobs === undefined)
      throw new Error(`the draws are of T = ${drawnAt} and have no logprobs`);
    const kept: { readonly id: number; readonly score: number }[] = [];
    for (let i = starts[row]![stored]!; i < starts[row]![stored + 1]!; i++) {
      if (drawn[i]! >= vocabSize) continue;
      const tilt = exponent === 0 ? 0 : exponent * logprobs![i]!;
      kept.push({ id: drawn[i]!, score: Math.log(draws[i]!) + tilt });
    }
    const most = kept.reduce((best, { score }) => Math.max(best, score), -Infinity);
    const logTotal = most + Math.log(kept.reduce((sum, { score }) => sum + Math.exp(score - most), 0));
    kept.forEach(({ id, score }, i) => {
      ids[n * width + i] = BigInt(id);
      logWeights[n * width + i] = score - logTotal;
    });
    ids.fill(ids[n * width]!, n * width + kept.length, (n + 1) * width);
  });
  return { width, ids, logWeights };
}
