import type { ModelConfig } from '@stillhouse/checkpoint';
import { type FloatDtype, GraphBuilder } from '@stillhouse/onnx-graph';

/** The final norm. Inputs: x [N, H], norm [H]. Output: hidden [N, H], what enters the output matrix. */
export function finalNormGraph(config: ModelConfig, float: FloatDtype): GraphBuilder {
  const g = new GraphBuilder('final_norm', float);
  const x = g.floatInput('x', ['N', config.hiddenSize]);
  const norm = g.floatInput('norm', [config.hiddenSize]);
  g.output('hidden', g.rmsNormalization(x, norm, config.rmsNormEpsilon));
  return g;
}

/** Final norm, output matrix and choice. Inputs: x [N, H], norm [H], head [V, H]. Output: next int64 [N]. */
export function greedyHeadGraph(config: ModelConfig, float: FloatDtype): GraphBuilder {
  const g = new GraphBuilder('greedy_head', float);
  const x = g.floatInput('x', ['N', config.hiddenSize]);
  const norm = g.floatInput('norm', [config.hiddenSize]);
  const head = g.floatInput('head', [config.vocabSize, config.hiddenSize]);
  const hidden = g.rmsNormalization(x, norm, config.rmsNormEpsilon);
  g.output('next', g.argMax(g.gemm(hidden, head, { transB: true }), 1));
  return g;
}
