import type { GraphBuilder, Value } from '@stillhouse/onnx-graph';
import type { LogDistributions } from '../losses/divergence.ts';
import { emitLogSumExp, REMOVED_SCORE } from '../losses/vocabulary-sums.ts';

/** Stands for the log-probability of an entry that is not there; its exponential is exactly zero. */
export const ABSENT_LOGPROB = -1e4;

/** Whether a logarithm is of something that is there. */
export const emitIsPresent = (g: GraphBuilder, logprobs: Value) => g.less(g.scalar(ABSENT_LOGPROB / 2), logprobs);

/** What mass outside the top k becomes: one exact entry, one entry tempered from T = 1, or nothing. */
export type TailKind = 'tail' | 'bucket' | 'renormalise' | 'renormalise-both';

export interface TopKInputs {
  /** int64 [N, K], distinct in a row; a row with fewer than K entries repeats its first id. */
  readonly ids: Value;
  /** [N, K]: at temperature T for `tail`, at 1 otherwise; `ABSENT_LOGPROB` where a row has fewer entries. */
  readonly logprobs: Value;
  /** [N]: log-probability of everything outside the top k, at the temperature of `logprobs`; absent when k = V. */
  readonly tailLogprob?: Value | undefined;
}

/** Softmax of both sides over the whole vocabulary at temperature T: [N, V]. */
export function emitFullDistributions(
  g: GraphBuilder,
  studentLogits: Value,
  teacherLogits: Value,
  temperature: Value,
): LogDistributions {
  const inverse = g.reciprocal(temperature);
  return {
    teacher: g.logSoftmax(g.mul(teacherLogits, inverse), 1),
    student: g.logSoftmax(g.mul(studentLogits, inverse), 1),
  };
}

/**
 * Both sides over the teacher's top-k ids and, by `tail`, one more entry for all other ids ([N, K + 1]):
 * - `tail`: the mass outside at temperature T on both sides, exact; never exceeds the full divergence;
 * - `bucket`: the mass outside at T = 1 as one entry, then both sides tempered and renormalised over K + 1 entries;
 * - `renormalise`: the teacher renormalised over S at T, the student with its full normaliser (not a divergence);
 * - `renormalise-both`: both renormalised over S at T.
 */
export function emitTopKDistributions(
  g: GraphBuilder,
  studentLogits: Value,
  topk: TopKInputs,
  { tail, temperature }: { readonly tail: TailKind; readonly temperature: Value },
): LogDistributions {
  const inverse = g.reciprocal(temperature);
  const isPresent = emitIsPresent(g, topk.logprobs);
  const atEntries = (logprobs: Value) =>
    g.where(isPresent, g.gatherElements(logprobs, topk.ids, 1), g.scalar(ABSENT_LOGPROB));
  // What is absent stays absent at any temperature.
  const temper = (logprobs: Value) =>
    g.where(emitIsPresent(g, logprobs), g.mul(logprobs, inverse), g.scalar(ABSENT_LOGPROB));
  switch (tail) {
    case 'tail':
      return withTailEntry(g, g.mul(studentLogits, inverse), topk, atEntries);
    case 'bucket': {
      const { teacher, student } = withTailEntry(g, studentLogits, topk, atEntries);
      return { teacher: g.logSoftmax(temper(teacher), 1), student: g.logSoftmax(temper(student), 1) };
    }
    case 'renormalise':
      return {
        teacher: g.logSoftmax(temper(topk.logprobs), 1),
        student: atEntries(g.logSoftmax(g.mul(studentLogits, inverse), 1)),
      };
    case 'renormalise-both':
      return {
        teacher: g.logSoftmax(temper(topk.logprobs), 1),
        student: g.logSoftmax(temper(atEntries(studentLogits)), 1),
      };
  }
}

function withTailEntry(
  g: GraphBuilder,
  scores: Value,
  topk: TopKInputs,
  atEntries: (logprobs: Value) => Value,
): LogDistributions {
  const logNormaliser = emitLogSumExp(g, scores);
  const entries = g.sub(atEntries(scores), logNormaliser);
  if (topk.tailLogprob === undefined) return { teacher: topk.logprobs, student: entries };
  // The student's mass outside is summed over what is left, not taken as 1 - Σ: that difference loses all digits
  // where the tail is small, and a ratio of two tails is what the gradient needs.
  const [rows] = scores.shape;
  const removed = g.expand(g.scalar(REMOVED_SCORE), topk.ids.shape);
  const outside = emitLogSumExp(g, g.scatterElements(scores, topk.ids, removed, { axis: 1 }));
  const teacherTail = g.reshape(topk.tailLogprob, [rows!, 1]);
  return {
    teacher: g.concat([topk.logprobs, teacherTail], 1),
    student: g.concat([entries, g.sub(outside, logNormaliser)], 1),
  };
}

/** Ids drawn from the teacher's distribution and what each weighs. */
export interface SampledInputs {
  /** int64 [N, K], distinct in a row; a row with fewer than K entries repeats its first id. */
  readonly ids: Value;
  /** [N, K]: logarithms of weights that add up to 1 in a row; `ABSENT_LOGPROB` where a row has fewer entries. */
  readonly logWeights: Value;
}

/**
 * Both sides at ids that were drawn from the teacher at temperature T (random-sampling KD, Anshumann et al. 2025,
 * arXiv 2503.16870): the teacher as the empirical distribution w, the student with its full normaliser. The
 * forward divergence is Σ w (log w - log q). Its gradient, that of the cross-entropy -Σ w log q, is an unbiased
 * estimate of the gradient of the full KL where w are counts over the number of draws; its value is the full KL too
 * large by H(p) - H(w), the entropy that the draws lack, which does not depend on the student.
 */
export function emitSampledDistributions(
  g: GraphBuilder,
  studentLogits: Value,
  { ids, logWeights }: SampledInputs,
  temperature: Value,
): LogDistributions {
  const scores = g.mul(studentLogits, g.reciprocal(temperature));
  const entries = g.sub(g.gatherElements(scores, ids, 1), emitLogSumExp(g, scores));
  const absent = g.scalar(ABSENT_LOGPROB);
  return { teacher: logWeights, student: g.where(emitIsPresent(g, logWeights), entries, absent) };
}
