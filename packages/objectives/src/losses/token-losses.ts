import type { GraphBuilder, Value } from '@stillhouse/onnx-graph';
import { emitLogSumExp } from './vocabulary-sums.ts';

/**
 * Cross-entropy with the label at each position, T = 1: -log softmax(z)[label], [N] in nats. `labels` int64 [N] or
 * [N, 1].
 */
export function emitCrossEntropy(g: GraphBuilder, studentLogits: Value, labels: Value): Value {
  const [rows] = studentLogits.shape;
  const atLabel = g.reshape(g.gatherElements(studentLogits, g.reshape(labels, [rows!, 1]), 1), [rows!]);
  return g.sub(g.reshape(emitLogSumExp(g, studentLogits), [rows!]), atLabel);
}
