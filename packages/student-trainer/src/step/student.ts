import type { DeviceTensor, Engine } from '@stillhouse/runtime';
import { type AdamWSettings, createAdamW, type StateTensor } from '../optimiser/adamw.ts';
import { makeTrainingPlan, type PlanOptions, type TrainingPlan } from '../plan/training-plan.ts';
import type { LossScalars } from './loss-scalars.ts';
import { addSums, createMicroBatchRunner, type LossSums, type MicroBatch, ZERO_SUMS } from './micro-batch.ts';
import { createParameterStore, type InitialValues, type ParameterStore } from './parameters.ts';
import { compileStepPrograms } from './step-programs.ts';

/** What a student begins with. */
export interface StudentStart extends InitialValues {
  readonly scalars: LossScalars;
  readonly adamw: Omit<AdamWSettings, 'optimiserState'>;
  readonly teacherHead?: DeviceTensor;
}

export type StudentOptions = StudentStart & PlanOptions & { readonly adamw: AdamWSettings };

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

/** A student of its own plan, for whoever has no run. */
export const createStudent = (engine: Engine, options: StudentOptions): Promise<Student> =>
  openStudent(engine, makeTrainingPlan({ ...options, ...pickState(options.adamw) }), options);

const pickState = ({ optimiserState }: AdamWSettings) => (optimiserState === undefined ? {} : { optimiserState });

/** Compiles the step programs and puts the student's parameters on the device. */
export async function openStudent(engine: Engine, plan: TrainingPlan, start: StudentStart): Promise<Student> {
  const { float, scalars, teacherHead } = start;
  const programs = await compileStepPrograms(engine, plan, float);
  const parameters = await createParameterStore(engine, plan, start);
  const settings = { ...start.adamw, optimiserState: plan.optimiserState };
  const adamw = await createAdamW(engine, parameters.trained, settings, float);
  const setting = { float, scalars, ...(teacherHead === undefined ? {} : { teacherHead }) };
  const runner = createMicroBatchRunner(engine, plan, { programs, store: parameters, ...setting });
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
