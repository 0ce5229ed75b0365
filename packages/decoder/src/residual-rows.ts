import { type FloatDtype, GraphBuilder } from '@stillhouse/onnx-graph';

/** Rows of the residual stream by index. Inputs: x [N, H], indices int64 [M]. Output: rows [M, H]. */
export function gatherRowsGraph(hiddenSize: number, float: FloatDtype): GraphBuilder {
  const g = new GraphBuilder('gather_rows', float);
  const x = g.floatInput('x', ['N', hiddenSize]);
  const indices = g.input('indices', 'int64', ['M']);
  g.output('rows', g.gather(x, indices));
  return g;
}

/**
 * The reverse of `gatherRowsGraph`: adds rows [M, H] to x [N, H] at `indices` int64 [M, 1]. Output: x.sum, meant to
 * alias x.
 */
export function scatterRowsGraph(hiddenSize: number, float: FloatDtype): GraphBuilder {
  const g = new GraphBuilder('scatter_rows', float);
  const x = g.floatInput('x', ['N', hiddenSize]);
  const indices = g.input('indices', 'int64', ['M', 1]);
  const rows = g.floatInput('rows', ['M', hiddenSize]);
  g.output('x.sum', g.scatterAddRows(x, indices, rows));
  return g;
}
