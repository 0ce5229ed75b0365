import type { ModelConfig } from '@stillhouse/checkpoint';
import { type FloatDtype, GraphBuilder } from '@stillhouse/onnx-graph';
import { gradientName } from './gradient-name.ts';

/** Token embeddings. Inputs: ids int64 [N], table [V, H]. Output: x [N, H]. */
export function embeddingGraph(config: ModelConfig, float: FloatDtype): GraphBuilder {
  const g = new GraphBuilder('embedding', float);
  const ids = g.input('ids', 'int64', ['N']);
  const table = g.floatInput('table', [config.vocabSize, config.hiddenSize]);
  g.output('x', g.gather(table, ids));
  return g;
}

/**
 * Gradient of the embeddings, added to `gradient.table` in place. What tokens of one id have is added up by a product
 * first, so that every row of the table is written once: where threads add to one row, they come in any order, and a
 * resumed run would not be the uninterrupted one bit for bit.
 *
 * Inputs: tokens int32 [1, N], ids int32 [U, 1] those that occur, rows int64 [U, 1] the same, dx [N, H],
 * gradient.table [V, H]. Output: gradient.table.sum, meant to alias it.
 */
export function embeddingGradientGraph(config: ModelConfig, float: FloatDtype): GraphBuilder {
  const g = new GraphBuilder('embedding_gradient', float);
  const isOf = g.equal(g.input('ids', 'int32', ['U', 1]), g.input('tokens', 'int32', [1, 'N']));
  const sums = g.matMul(g.where(isOf, g.scalar(1), g.scalar(0)), g.floatInput('dx', ['N', config.hiddenSize]));
  const into = g.floatInput(gradientName('table'), [config.vocabSize, config.hiddenSize]);
  g.output(`${gradientName('table')}.sum`, g.scatterAddRows(into, g.input('rows', 'int64', ['U', 1]), sums));
  return g;
}
