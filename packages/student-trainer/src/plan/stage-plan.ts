import type { ModelConfig } from '@stillhouse/checkpoint';
import { isStillhouseError, StillhouseError } from '@stillhouse/errors';
import { type Accelerator, measureTensorMemory } from '@stillhouse/runtime';
import { countSteps, sumLengths } from '../data/data-order.ts';
import {
  type OpenCaches,
  orderSources,
  resolveSources,
  type TrainingSource,
  type TrainingSources,
} from '../data/training-sources.ts';
import { checkOptimiserState } from '../optimiser/adamw.ts';
import { namePair, type PairedStates, statesOf } from '../settings/layer-pairs.ts';
import type { ResolvedObjective } from '../settings/objective-from-settings.ts';
import type { Stage } from '../settings/stage-settings.ts';
import type { TrainingSettings } from '../settings/training-settings.ts';
import { measureActivations } from '../step/activation-store.ts';
import { resolveHeldOut } from '../watch/held-out.ts';
import { keepReached } from './feature-reach.ts';
import { resolveLearning } from './learning.ts';
import { isProjection } from './projections.ts';
import { makeTrainingPlan, type TrainingPlan } from './training-plan.ts';

/** Settings with the paths that a run cannot do without. */
export type RunSettings = TrainingSettings & {
  readonly cache: string;
  readonly student: string;
  readonly out: string;
};

/** A stage as it will run: what it learns from, what learns, which steps of the run are its own. */
export interface StagePlan extends TrainingSources {
  /** `undefined` where a run has no stages and this is all of it. */
  readonly name: string | undefined;
  readonly settings: ResolvedSettings;
  readonly plan: TrainingPlan;
  /** Steps of the run that come before. */
  readonly stepsBefore: number;
}

/** Steps of the run when the stage is done. */
export const endOf = ({ stepsBefore, settings }: Pick<StagePlan, 'stepsBefore' | 'settings'>): number =>
  stepsBefore + settings.steps;

export const countAllSteps = (stages: readonly StagePlan[]): number => endOf(stages.at(-1)!);

/** The stage that made step `step`: at a switch the one before it. */
export function findStage(stages: readonly StagePlan[], step: number): number {
  const found = stages.findIndex((stage) => step <= endOf(stage));
  return found === -1 ? stages.length - 1 : found;
}

/**
 * Holds every stage against caches and student, so that a mistake in the last one shows before the first step of the
 * first.
 * @param run settings of the run, which are those of its only stage where it has none
 * @throws StillhouseError of each part, with the stage in `where`
 */
export async function planStages(
  run: RunSettings,
  stages: readonly Stage[] | undefined,
  caches: Pick<OpenCaches, 'caches'>,
  config: ModelConfig,
): Promise<readonly StagePlan[]> {
  if (stages === undefined) return [await planStage(run, { name: undefined, stepsBefore: 0 }, caches, config)];
  refuseOtherAdapters(stages);
  const plans: StagePlan[] = [];
  for (const [i, { name, settings }] of stages.entries()) {
    const { cache, student, out } = run;
    const stepsBefore = plans.length === 0 ? 0 : countAllSteps(plans);
    try {
      plans.push(await planStage({ ...settings, cache, student, out }, { name, stepsBefore }, caches, config));
    } catch (error) {
      throw nameStage(error, `stage ${i + 1} (${name})`);
    }
  }
  return plans;
}

function nameStage(error: unknown, stage: string): unknown {
  if (!isStillhouseError(error)) return error;
  return new StillhouseError({ ...error.report, where: `${stage}, ${error.report.where}`, cause: error });
}

/** Adapters are carried from stage to stage, so they must be the same ones. */
function refuseOtherAdapters(stages: readonly Stage[]): void {
  const [first, ...others] = stages.map(({ name, settings }) => ({
    name,
    settings,
    layers: String(settings.trainLayers),
  }));
  const other = others.find(({ layers }) => layers !== first!.layers);
  if (first!.settings.loraRank === undefined || other === undefined) return;
  throw new StillhouseError({
    code: 'SETTING_NOT_FOR_STAGE',
    where: `stage ${other.name}, trainLayers`,
    problem: 'adapters go on from stage to stage, in the same layers',
    expected: first!.layers,
    got: other.layers,
    remedy: 'Give trainLayers once beside "stages", or train without loraRank',
  });
}

async function planStage(
  settings: RunSettings,
  { name, stepsBefore }: Pick<StagePlan, 'name' | 'stepsBefore'>,
  caches: Pick<OpenCaches, 'caches'>,
  config: ModelConfig,
): Promise<StagePlan> {
  refuseStepsAndEpochs(settings);
  checkOptimiserState(settings, settings.device);
  // No stage may learn from the rows that the run is evaluated on.
  resolveHeldOut(settings);
  // Refused before any row is read.
  resolveLearning(settings, config);
  const { sources, resolved } = await resolveSources(caches, settings, config);
  const plan = planStudent(settings, { sources, resolved }, config);
  refuseNothingToLearn(plan, settings);
  return { name, stepsBefore, settings: resolveOpen(settings, { sources, resolved }, plan), plan, sources, resolved };
}

/** How the student is trained under these settings; `auto` recomputation is decided by the memory of the device. */
export function planStudent(
  settings: RunSettings,
  { sources, resolved: { objective, vocabSize } }: TrainingSources,
  config: ModelConfig,
): TrainingPlan {
  const { optimiserState, recompute, chunkPositions, selectTokens } = settings;
  const learning = keepReached(resolveLearning(settings, config), objective, config);
  const plan = makeTrainingPlan({
    ...{ config, objective, vocabSize, ...learning, optimiserState, chunkPositions, selectTokens },
    recompute: recompute === 'always',
  });
  return recompute === 'auto' ? { ...plan, recompute: needsRecompute(settings, sources, plan) } : plan;
}

export type ResolvedSettings = RunSettings & {
  readonly steps: number;
  readonly labels: 'full' | 'topk' | 'sampled' | 'none';
  readonly refine: 'always' | 'never';
  readonly recompute: 'always' | 'never';
};

/**
 * What `auto` may choose for a run besides the CPU. Whoever installed the CUDA provider means it to be used; every
 * machine with a graphics driver has WebGPU.
 */
export const TRAINING_DEVICES: readonly Accelerator[] = ['cuda', 'webgpu'];

/** Share of the memory for tensors that activations may take before `auto` computes them again instead. */
const ACTIVATIONS_SHARE = 0.25;

/** Settings that were left open, by what the data and the machine are: the recipe that is written has none. */
function resolveOpen(
  settings: RunSettings,
  { sources, resolved: { objective } }: TrainingSources,
  plan: TrainingPlan,
): ResolvedSettings {
  const { seed, batchTokens, epochs = 1 } = settings;
  return {
    ...settings,
    labels: objective.labels.kind,
    refine: isRefined(objective) ? 'always' : 'never',
    jsBeta: objective.divergence.kind === 'jensen-shannon' ? objective.divergence.beta : undefined,
    skew: objective.divergence.kind === 'skew-kl' ? objective.divergence.skew : undefined,
    hiddenLayers: namePairs(objective, 'hidden', settings.hiddenLayers),
    attentionLayers: namePairs(objective, 'attention', settings.attentionLayers),
    steps: settings.steps ?? countSteps(orderSources(sources), seed, batchTokens, epochs),
    epochs: undefined,
    recompute: plan.recompute ? 'always' : 'never',
  };
}

/** The pairs that are matched, by number; `last` need not be named. */
function namePairs(
  { features = [] }: ResolvedObjective['objective'],
  states: PairedStates,
  given: readonly string[] | undefined,
): readonly string[] | undefined {
  if (given === undefined || given.join() === 'last') return undefined;
  return features.filter((match) => statesOf(match) === states).map(namePair);
}

const isRefined = ({ labels }: ResolvedObjective['objective']) =>
  labels.kind === 'full' && labels.refinement !== undefined;

function needsRecompute(
  { batchTokens, accumulate, batching, device }: RunSettings,
  sources: readonly TrainingSource[],
  { config, backward }: TrainingPlan,
): boolean {
  const longest = Math.max(
    ...sources.map(({ rows }) => rows.lengths.reduce((most, length) => Math.max(most, length), 1)),
  );
  const mean = Math.min(...sources.map(({ rows }) => sumLengths(rows.lengths) / rows.lengths.length));
  const rowCount = Math.ceil(batchTokens / accumulate / (batching === 'packed' ? longest : mean)) + 1;
  const room = ACTIVATIONS_SHARE * measureTensorMemory(device, TRAINING_DEVICES);
  return measureActivations(config, backward, rowCount, longest) > room;
}

/** Projections alone would learn, and the student stay what it is. */
function refuseNothingToLearn({ tensors }: TrainingPlan, { trainLayers }: TrainingSettings): void {
  if (tensors.some(({ name, learns }) => learns && !isProjection(name))) return;
  throw new StillhouseError({
    code: 'SETTING_CONFLICT',
    where: '--train-layers',
    problem: 'what is to learn lies above the layers that --features-only runs',
    got: trainLayers.join(','),
    remedy: 'Let lower layers learn, match higher ones, or leave --features-only out',
  });
}

function refuseStepsAndEpochs({ steps, epochs }: TrainingSettings): void {
  if (steps === undefined || epochs === undefined) return;
  throw new StillhouseError({
    code: 'SETTING_CONFLICT',
    where: '--epochs',
    problem: 'the number of steps is given too, and only one of both can hold',
    got: `--steps ${steps} and --epochs ${epochs}`,
    remedy: 'Leave one of them out',
  });
}
