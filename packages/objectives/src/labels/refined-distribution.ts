import type { GraphBuilder, Value } from '@stillhouse/onnx-graph';
import { emitLogSumExp, REMOVED_SCORE } from '../losses/vocabulary-sums.ts';
import { emitIsPresent, type TopKInputs } from './label-distributions.ts';

/**
 * What normalises refined labels: `stored`, the cache has log_z of the temperature and ids and tail come at it;
 * `computed`, ids and tail come at T = 1 and the normaliser of any other temperature follows from the tail's shape.
 */
export type RefinementNormaliser = 'stored' | 'computed';

export interface RefinementInputs extends TopKInputs {
  /** [N]: at temperature T for `stored`, at 1 for `computed`; `ABSENT_LOGPROB` where the entries hold all there is. */
  readonly tailLogprob: Value;
}

/**
 * The teacher's distribution over the whole vocabulary, [N, V] logarithms, with its head from exact top-k labels and
 * only the shape of its tail from logits that may come from a compressed hidden state. With S the stored ids, s the
 * logits, l and tail the exact log-probabilities of S and of everything outside:
 * - `stored`: log p_i = l_i at T on S; log p_j = tail at T + log softmax over V\S of s_j / T outside;
 * - `computed`: z_j = s_j shifted so that Σ over V\S of exp(z_j) is the exact mass outside at T = 1; then both sides
 *   are tempered, log p_i = l_i / T - log Z and log p_j = z_j / T - log Z with Z = Σ_S exp(l_i / T) + Σ_V\S exp(z_j /
 *   T). Where the exact mass outside is below what floating point can tell (`ABSENT_LOGPROB`), the logits alone say how
 *   large it is: at T > 1 even that mass can matter.
 *
 * Nothing is differentiated through it but the student, which it does not see.
 * @param teacherLogits [N, V]; an id that a padded entry repeats counts once
 */
export function emitRefinedTeacher(
  g: GraphBuilder,
  teacherLogits: Value,
  topk: RefinementInputs,
  { normaliser, temperature }: { readonly normaliser: RefinementNormaliser; readonly temperature: Value },
): Value {
  const inverse = g.reciprocal(temperature);
  const isPresent = emitIsPresent(g, topk.logprobs);
  const tail = g.reshape(topk.tailLogprob, [teacherLogits.shape[0]!, 1]);
  const removed = g.expand(g.scalar(REMOVED_SCORE), topk.ids.shape);
  const removeHead = (scores: Value) => g.scatterElements(scores, topk.ids, removed, { axis: 1 });
  // A padded entry repeats the first id, so it must write what the first entry writes.
  const placeHead = (whole: Value, logprobs: Value) => {
    const [first] = topk.ids.shape[1] === 1 ? [logprobs] : g.split(logprobs, 1, [1, (topk.ids.shape[1] as number) - 1]);
    return g.scatterElements(whole, topk.ids, g.where(isPresent, logprobs, first!), { axis: 1 });
  };
  if (normaliser === 'stored') {
    const outside = removeHead(g.mul(teacherLogits, inverse));
    return placeHead(g.add(g.sub(outside, emitLogSumExp(g, outside)), tail), topk.logprobs);
  }
  const outside = removeHead(teacherLogits);
  const logMass = emitLogSumExp(g, outside);
  const isTailKnown = emitIsPresent(g, tail);
  const tailLogprob = g.where(isTailKnown, tail, g.sub(logMass, emitLogSumExp(g, teacherLogits)));
  const isOutside = g.less(g.scalar(REMOVED_SCORE / 2), outside);
  // What was removed stays removed whatever the shift and the temperature make of it.
  const tempered = g.mul(g.add(g.sub(outside, logMass), tailLogprob), inverse);
  const scores = g.where(isOutside, tempered, g.scalar(REMOVED_SCORE));
  const head = g.where(isPresent, g.mul(topk.logprobs, inverse), g.scalar(REMOVED_SCORE));
  const logZ = emitLogSumExp(g, g.concat([emitLogSumExp(g, head), emitLogSumExp(g, scores)], 1));
  return placeHead(g.sub(scores, logZ), g.sub(head, logZ));
}
