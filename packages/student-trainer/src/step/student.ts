import type { ModelConfig } from '@stillhouse/checkpoint';
import type { Objective } from '@stillhouse/objectives';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { DeviceTensor, Engine } from '@stillhouse/runtime';
import { type AdamWSettings, createAdamW, type StateTensor } from '../optimiser/adamw.ts';
import { describeProjections } from '../plan/projections.ts';
import type { StudentAdapter } from './adapters.ts';
import {
  addSums,
  createMicroBatchRunner,
  type LossScalars,
  type LossSums,
  type MicroBatch,
  ZERO_SUMS,
} from './micro-batch.ts';
import { createParameterStore, type FloatData, type ParameterStore } from './parameters.ts';
import { TILE_TOKENS } from './row-tiles.ts';
import { compileStepPrograms } from './step-programs.ts';

export interface StudentOptions {
  readonly config: ModelConfig;
  readonly float: FloatDtype;
  readonly read: (name: string) => Promise<FloatData>;
  readonly objective: Objective;
  readonly scalars: LossScalars;
  readonly adamw: AdamWSettings;
  readonly vocabSize: number;
  readonly teacherHead?: DeviceTensor;
  readonly chunkPositions: number;
  /** Compute a layer's activations again for its gradient instead of keeping them: less memory, a third more work. Default false. */
  readonly recompute?: boolean;
  /** Share of each row's target positions that count, those of highest entropy. Default 1: all. */
  readonly selectTokens?: number;
  /** Most tokens that go through a layer together on a CPU, where rows are not longer. Default 512. */
  readonly tileTokens?: number;
  /** Whether a parameter learns, by its name in checkpoints. Default: all do. */
  readonly trained?: (name: string) => boolean;
  /** Low-rank adapters, whose initial values `read` gives too. */
  readonly adapter?: StudentAdapter;
}

/** All that changes from step to step, by the file of a checkpoint that it is kept in. */
export type StudentState = Readonly<Record<'weights' | 'first-moments' | 'second-moments', readonly StateTensor[]>>;

export interface StepResult {
  readonly sums: LossSums;
  /** Global gradient norm before clipping. */
  readonly gradientNorm: number;
}

/** A student on a device that takes optimiser steps. */
export interface Student {
  readonly parameters: ParameterStore;
  readonly state: StudentState;
  /** Changes T, alpha or the weight of the hidden term from the next step on. */
  setScalars(scalars: Partial<LossScalars>): void;
  /**
   * Zeroes the gradients, then adds those of every micro-batch.
   * @param denominator the number of target positions that count, or the sum of their weights
   */
  computeGradients(microBatches: readonly MicroBatch[], denominator: number): Promise<StepResult>;
  /** Applies the gradients that stand in the accumulators; `step` counts from 1. */
  update(step: number, learningRate: number, gradientNorm: number): Promise<void>;
}

/** Compiles the step programs and puts the student's parameters on the device. */
export async function createStudent(engine: Engine, options: StudentOptions): Promise<Student> {
  const { config, float, objective, vocabSize, scalars, chunkPositions, teacherHead, read } = options;
  const { selectTokens = 1, tileTokens = TILE_TOKENS, trained = () => true } = options;
  const adapter = options.adapter === undefined ? {} : { adapter: options.adapter };
  const programs = await compileStepPrograms(engine, {
    config,
    objective,
    vocabSize,
    float,
    recompute: options.recompute ?? false,
    selects: selectTokens < 1,
    trained,
    ...adapter,
  });
  const parameters = await createParameterStore(engine, {
    config,
    float,
    read,
    trained,
    projections: describeProjections(objective.features),
    ...adapter,
  });
  const adamw = await createAdamW(engine, parameters.trained, options.adamw, float);
  const setting = {
    objective,
    scalars,
    vocabSize,
    chunkPositions,
    selectTokens,
    tileTokens,
    ...(teacherHead === undefined ? {} : { teacherHead }),
  };
  const runner = createMicroBatchRunner(engine, programs, parameters, setting, float);
  return {
    parameters,
    state: {
      weights: parameters.trained.map(({ name, weight }) => ({ name, tensor: weight })),
      'first-moments': adamw.state.firstMoments,
      'second-moments': adamw.state.secondMoments,
    },
    setScalars: runner.setScalars,
    async computeGradients(microBatches, denominator) {
      await engine.run(parameters.trained.map(({ gradient }) => ({ kind: 'fill', tensor: gradient, value: 0 })));
      let sums = ZERO_SUMS;
      for (const batch of microBatches) sums = addSums(sums, await runner.accumulate(batch, denominator));
      return { sums, gradientNorm: await adamw.gradientNorm() };
    },
    update: (step, learningRate, gradientNorm) => adamw.update(step, learningRate, gradientNorm),
  };
}
