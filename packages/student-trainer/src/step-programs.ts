import type { ModelConfig } from '@stillhouse/checkpoint';
import {
  blockGradientGraph,
  compileForwardPrograms,
  compileGraph,
  embeddingGradientGraph,
  type ForwardPrograms,
  type SavedActivation,
  savingBlockGraphs,
  scatterRowsGraph,
} from '@stillhouse/decoder';
import { entropyGraph, lossGraph, type Objective, selectionGraph } from '@stillhouse/objectives';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { Engine, Program } from '@stillhouse/runtime';

/** Every program of a training step. Their number and size do not depend on the depth of the student. */
export interface StepPrograms {
  readonly forward: ForwardPrograms;
  /** A layer forwards: y, and the saved activations where there are any. */
  readonly block: Program;
  readonly blockGradient: Program;
  /** Activations of a layer that are kept from its forward pass to its gradient; none when the gradient computes them again. */
  readonly saved: readonly SavedActivation[];
  readonly embeddingGradient: Program;
  readonly scatterRows: Program;
  readonly loss: Program;
  /** Where only some positions count: the student's entropy, and which positions it leaves. */
  readonly selection: { readonly entropy: Program; readonly select: Program } | undefined;
}

export interface StepProgramOptions {
  readonly config: ModelConfig;
  readonly objective: Objective;
  /** Rows of the output matrix that take part in the loss. */
  readonly vocabSize: number;
  readonly float: FloatDtype;
  /** Whether a layer's activations are computed again for its gradient rather than kept. */
  readonly recompute: boolean;
  /** Whether positions are chosen by the student's entropy. */
  readonly selects: boolean;
}

export async function compileStepPrograms(engine: Engine, options: StepProgramOptions): Promise<StepPrograms> {
  const { config, objective, vocabSize, float, recompute, selects } = options;
  const { hiddenSize, rmsNormEpsilon } = config;
  const forward = await compileForwardPrograms(engine, config, float);
  const saving = recompute ? undefined : savingBlockGraphs(config, float);
  const readout = { hiddenSize, vocabSize, rmsNormEpsilon };
  const [blockGradient, embeddingGradient, scatterRows, loss] = await Promise.all(
    [
      saving?.gradient ?? blockGradientGraph(config, float),
      embeddingGradientGraph(config, float),
      scatterRowsGraph(hiddenSize, float),
      lossGraph(objective, readout, float),
    ].map((graph) => compileGraph(engine, graph)),
  );
  return {
    forward,
    block: saving === undefined ? forward.block : await compileGraph(engine, saving.forward),
    saved: saving?.saved ?? [],
    blockGradient: blockGradient!,
    embeddingGradient: embeddingGradient!,
    scatterRows: scatterRows!,
    loss: loss!,
    selection: selects
      ? {
          entropy: await compileGraph(engine, entropyGraph(readout, float)),
          select: await compileGraph(engine, selectionGraph(float)),
        }
      : undefined,
  };
}
