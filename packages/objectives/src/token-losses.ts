import type { GraphBuilder, Value } from '@stillhouse/onnx-graph';
import { emitLogSumExp } from './vocabulary-sums.ts';

/** Cross-entropy with the label at each position, T = 1: -log softmax(z)[label], [N] in nats. `labels` int64 [N]. */
export function emitCrossEntropy(g: GraphBuilder, studentLogits: Value, labels: Value): Value {
  const [rows] = studentLogits.shape;
  const atLabel = g.reshape(g.gatherElements(studentLogits, g.reshape(labels, [rows!, 1]), 1), [rows!]);
  return g.sub(g.reshape(emitLogSumExp(g, studentLogits), [rows!]), atLabel);
}

export type HiddenLoss = 'mse' | 'cosine';

/**
 * Distance of hidden states at each position, [N]: `mse` is the mean over the width of (projection·student - teacher)²
 * (Jiao et al. 2020, arXiv 1909.10351, eq. 8), `cosine` is 1 - their cosine (Sanh et al. 2019, arXiv 1910.01108, §3).
 * @param student [N, H]; `teacher` [N, D]; `projection` [D, H], left out when H = D and states are compared as they are
 */
export function emitHiddenLoss(
  g: GraphBuilder,
  kind: HiddenLoss,
  student: Value,
  teacher: Value,
  projection?: Value,
): Value {
  const h = projection === undefined ? student : g.gemm(student, projection, { transB: true });
  if (kind === 'mse') {
    const difference = g.sub(h, teacher);
    return g.reduceMean(g.mul(difference, difference), [1]);
  }
  const norm = (x: Value) => g.sqrt(g.reduceSumSquare(x, [1]));
  const cosine = g.div(g.reduceSum(g.mul(h, teacher), [1]), g.mul(norm(h), norm(teacher)));
  return g.sub(g.scalar(1), cosine);
}
