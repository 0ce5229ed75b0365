import { FINAL_NORM_NAME, type ModelConfig, outputMatrixName } from '@stillhouse/checkpoint';
import type { LossGradients, Objective } from '@stillhouse/objectives';
import type { OptimiserStateFormat } from '../optimiser/optimiser-state.ts';
import { type StudentAdapter, studentParameters } from '../step/adapters.ts';
import { TILE_TOKENS } from '../step/row-tiles.ts';
import { type BackwardPlan, planBackward, takesGradient } from './backward-plan.ts';
import { describeProjections, type ProjectionSpec } from './projections.ts';

/** A tensor of the student, of its adapters, or a projection. */
export interface PlannedTensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly learns: boolean;
}

/**
 * How a student is trained: made once, before there is an engine. The forecast counts it, the step's programs are
 * compiled from it, the store allocates it and checkpoints hold it, so that none of them can think otherwise.
 */
export interface TrainingPlan {
  readonly config: ModelConfig;
  readonly objective: Objective;
  /** Rows of the output matrix that take part in the loss. */
  readonly vocabSize: number;
  /** In checkpoint order, projections last. */
  readonly tensors: readonly PlannedTensor[];
  readonly adapter: StudentAdapter | undefined;
  readonly projections: readonly ProjectionSpec[];
  readonly backward: BackwardPlan;
  /** What the loss gives the gradient of. */
  readonly lossGradients: Readonly<Required<LossGradients>>;
  readonly optimiserState: OptimiserStateFormat;
  /** Whether a layer's activations are computed again for its gradient rather than kept. */
  readonly recompute: boolean;
  /** Label positions whose logits exist at a time. */
  readonly chunkPositions: number;
  /** Share of each row's target positions that count, those of the student's highest entropy; 1 is all. */
  readonly selectTokens: number;
  /** Most tokens that go through a layer together on a CPU, where rows are not longer. */
  readonly tileTokens: number;
}

export interface PlanOptions {
  readonly config: ModelConfig;
  readonly objective: Objective;
  readonly vocabSize: number;
  readonly chunkPositions: number;
  /**
   * Compute a layer's activations again for its gradient instead of keeping them: less memory, a third more work.
   * Default false.
   */
  readonly recompute?: boolean;
  /** Share of each row's target positions that count, those of highest entropy. Default 1: all. */
  readonly selectTokens?: number;
  /** Default 512. */
  readonly tileTokens?: number;
  /** Whether a parameter learns, by its name in checkpoints; a projection always does. Default: all do. */
  readonly trained?: (name: string) => boolean;
  /** Low-rank adapters. */
  readonly adapter?: StudentAdapter | undefined;
  /** Default `float32`. */
  readonly optimiserState?: OptimiserStateFormat;
}

export function makeTrainingPlan(options: PlanOptions): TrainingPlan {
  const { config, objective, vocabSize, chunkPositions, adapter, trained = () => true } = options;
  const { recompute = false, selectTokens = 1, tileTokens = TILE_TOKENS, optimiserState = 'float32' } = options;
  const projections = describeProjections(objective.features);
  const backward = planBackward(config, trained, adapter, objective);
  return {
    ...{ config, objective, vocabSize, adapter, projections, backward },
    ...{ optimiserState, recompute, chunkPositions, selectTokens, tileTokens },
    tensors: [
      ...studentParameters(config, adapter).map(({ name, shape }) => ({ name, shape, learns: trained(name) })),
      ...projections.map(({ name, teacherHidden }) => ({
        name,
        shape: [teacherHidden, config.hiddenSize],
        learns: true,
      })),
    ],
    lossGradients: {
      x: takesGradient(backward, config.layerCount),
      norm: trained(FINAL_NORM_NAME),
      head: trained(outputMatrixName(config)),
    },
  };
}
