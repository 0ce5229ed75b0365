import { type FloatDtype, GraphBuilder, type Value } from '@stillhouse/onnx-graph';
import type { Readout } from './loss-graph.ts';
import { emitRowSum } from './vocabulary-sums.ts';

/**
 * How many of a row's target positions are kept: the share of them, rounded up, so at least one where there is any.
 * @param share above 0 and at most 1
 */
export function countSelected(targets: number, share: number): number {
  // A share such as 0.1 of 30 is 3 but for its last binary digit.
  return targets === 0 ? 0 : Math.ceil(targets * share - 1e-9);
}

/** Entropy -Σ q log q of softmax(z) at T = 1, [N] in nats, from logits [N, V]. */
export function emitEntropy(g: GraphBuilder, logits: Value): Value {
  const logprobs = g.logSoftmax(logits, 1);
  return g.reshape(g.neg(emitRowSum(g, g.mul(g.exp(logprobs), logprobs))), [logits.shape[0]!]);
}

/**
 * Final norm, output matrix and the student's entropy for a chunk of N label positions.
 *
 * Inputs: x [N, H] the residual stream after the last layer; norm [H]; head [V, H]. Output: entropy [N] in nats.
 */
export function entropyGraph({ hiddenSize, vocabSize, rmsNormEpsilon }: Readout, float: FloatDtype): GraphBuilder {
  const g = new GraphBuilder('entropy', float);
  const x = g.floatInput('x', ['N', hiddenSize]);
  const norm = g.floatInput('norm', [hiddenSize]);
  const head = g.floatInput('head', [vocabSize, hiddenSize]);
  const hidden = g.rmsNormalization(x, norm, rmsNormEpsilon);
  g.output('entropy', emitEntropy(g, g.gemm(hidden, head, { transB: true })));
  return g;
}

/**
 * Keeps the weights of those positions of one row that are among its `kept` of highest entropy, and makes the others
 * zero. Among equal entropies the earlier position goes first, so exactly `kept` are kept. A row is whole in one
 * micro-batch: what is kept does not depend on how a step is split.
 *
 * Inputs: entropy [N] and order [N] (0, 1, 2, ... from the row's first target) of some of the row's targets; weights
 * [N]; row.entropy [R] and row.order [R] of all of them; kept, a scalar. Output: selected [N].
 */
export function selectionGraph(float: FloatDtype): GraphBuilder {
  const g = new GraphBuilder('token_selection', float);
  const column = (name: string) => g.reshape(g.floatInput(name, ['N']), ['N', 1]);
  const row = (name: string) => g.reshape(g.floatInput(name, ['R']), [1, 'R']);
  const [entropy, order, others, othersOrder] = [
    column('entropy'),
    column('order'),
    row('row.entropy'),
    row('row.order'),
  ];
  const [one, zero] = [g.scalar(1), g.scalar(0)];
  const isEarlier = g.where(g.less(othersOrder, order), one, zero);
  // Not "is equal": of any two entropies exactly one of less, greater and equal holds, and less is there for both ways.
  const notBelow = g.where(g.less(others, entropy), zero, isEarlier);
  const isBefore = g.where(g.less(entropy, others), one, notBelow);
  const rank = g.reduceSum(isBefore, [1]);
  g.output('selected', g.where(g.less(rank, g.floatInput('kept', [])), g.floatInput('weights', ['N']), zero));
  return g;
}
