import type { ModelConfig } from '@stillhouse/checkpoint';
import {
  blockGradientGraph,
  compileForwardPrograms,
  compileGraph,
  embeddingGradientGraph,
  type ForwardPrograms,
  scatterRowsGraph,
} from '@stillhouse/decoder';
import { lossGraph, type Objective } from '@stillhouse/objectives';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { Engine, Program } from '@stillhouse/runtime';

/** Every program of a training step. Their number and size do not depend on the depth of the student. */
export interface StepPrograms {
  readonly forward: ForwardPrograms;
  readonly blockGradient: Program;
  readonly embeddingGradient: Program;
  readonly scatterRows: Program;
  readonly loss: Program;
}

/** @param vocabSize rows of the output matrix that take part in the loss */
export async function compileStepPrograms(
  engine: Engine,
  config: ModelConfig,
  objective: Objective,
  vocabSize: number,
  float: FloatDtype,
): Promise<StepPrograms> {
  const { hiddenSize, rmsNormEpsilon } = config;
  const forward = await compileForwardPrograms(engine, config, float);
  const [blockGradient, embeddingGradient, scatterRows, loss] = await Promise.all(
    [
      blockGradientGraph(config, float),
      embeddingGradientGraph(config, float),
      scatterRowsGraph(hiddenSize, float),
      lossGraph(objective, { hiddenSize, vocabSize, rmsNormEpsilon }, float),
    ].map((graph) => compileGraph(engine, graph)),
  );
  return {
    forward,
    blockGradient: blockGradient!,
    embeddingGradient: embeddingGradient!,
    scatterRows: scatterRows!,
    loss: loss!,
  };
}
