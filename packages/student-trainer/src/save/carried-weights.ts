import type { Engine } from '@stillhouse/runtime';
import { isProjection } from '../plan/projections.ts';
import type { StagePlan } from '../plan/stage-plan.ts';
import type { FloatData, ParameterStore } from '../step/parameters.ts';
import type { Student, StudentState } from '../step/student.ts';

/**
 * Weights that some stage has changed, by name, between two stages: only these are not what the student's folder holds.
 * Projections are not among them: each stage has its own pairs.
 */
export type CarriedWeights = Map<string, FloatData>;

/** Names of what has learnt in stages before this one. */
export function namesBefore(stages: readonly StagePlan[], stage: number): ReadonlySet<string> {
  const learnt = stages.slice(0, stage).flatMap(({ plan }) => plan.tensors.filter(({ learns }) => learns));
  return new Set(learnt.flatMap(({ name }) => (isProjection(name) ? [] : [name])));
}

/** What a checkpoint of a stage holds: what learns, and what has learnt in a stage before. */
export function joinState({ state, parameters }: Student, carried: ReadonlySet<string>): StudentState {
  const resting = parameters.tensors.filter(({ name, gradient }) => gradient === undefined && carried.has(name));
  return { ...state, weights: [...state.weights, ...resting.map(({ name, weight }) => ({ name, tensor: weight }))] };
}

/** Takes what has learnt so far off the device, for the next stage. */
export async function carryWeights(
  engine: Engine,
  { tensors }: ParameterStore,
  carried: ReadonlySet<string>,
): Promise<CarriedWeights> {
  const weights: CarriedWeights = new Map();
  for (const { name, weight, gradient } of tensors) {
    if (isProjection(name) || (gradient === undefined && !carried.has(name))) continue;
    weights.set(name, (await engine.download(weight)) as FloatData);
  }
  return weights;
}
