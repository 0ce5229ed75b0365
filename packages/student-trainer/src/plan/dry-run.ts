import { availableParallelism } from 'node:os';
import { measureAvailableMemory } from '@stillhouse/runtime';
import { flagOf } from '@stillhouse/settings';
import { measureKeptBatches } from '@stillhouse/teacher-cache';
import { openDataOrder } from '../data/data-order.ts';
import { selectLabels } from '../data/step-data.ts';
import { groupByLength, layOut, measureColumnCost } from '../data/step-layout.ts';
import { joinDigests, orderSources } from '../data/training-sources.ts';
import { checkFolder } from '../run/run-folder.ts';
import { makeRecipe } from '../settings/recipe.ts';
import type { StagedSettings } from '../settings/stage-settings.ts';
import type { TrainingSettings } from '../settings/training-settings.ts';
import {
  type BatchLayout,
  type BatchShape,
  forecastMemory,
  gatherLayouts,
  type MemoryForecast,
  type MemoryItem,
} from './memory-forecast.ts';
import { countAllSteps, planStudent, type StagePlan } from './stage-plan.ts';
import { openTrainingInputs, type TrainingInputs } from './training-inputs.ts';

/** A change of settings that takes memory, and how much it takes after those before it. */
export interface MemoryAdvice {
  readonly settings: Partial<TrainingSettings>;
  /** As flags. */
  readonly flags: string;
  /** What it costs otherwise. */
  readonly effect: string;
  readonly savedBytes: number;
  readonly peakBytes: number;
}

/** What a run would do and take. */
export interface DryRun {
  readonly cacheDigest: string;
  /** The stage that takes most, which all else is of; only where a run has stages. */
  readonly stage?: string;
  readonly rows: number;
  /** Of all stages. */
  readonly steps: number;
  readonly labels: string;
  readonly recompute: boolean;
  readonly threads: number;
  /** The largest micro-batch: rows and their length. */
  readonly batch: { readonly rows: number; readonly length: number };
  readonly memory: { readonly items: readonly MemoryItem[]; readonly peakBytes: number; readonly limitBytes: number };
  readonly fits: boolean;
  /** What to change, in this order, until it fits; empty where it does. */
  readonly advice: readonly MemoryAdvice[];
}

/** Steps that are laid out to find the largest micro-batch: rows come in random order. */
const STEPS_LAID_OUT = 200;

/**
 * Checks a run as `trainStudent` does before its first step, says what it takes, and writes nothing. On the CPU: memory
 * of other devices is not forecast.
 * @param limitBytes memory that the run may take; left out: this machine's, or what its container allows
 * @throws StillhouseError as `trainStudent` before its first step
 */
export async function planTraining(settings: StagedSettings, limitBytes = measureAvailableMemory()): Promise<DryRun> {
  const inputs = await openTrainingInputs(settings);
  try {
    await checkFolder(inputs.settings, makeRecipe(inputs.settings, inputs.stages));
    const { batch, memory, stage } = forecast(inputs, {});
    const base = stage.settings;
    const advice = memory.peakBytes <= limitBytes ? [] : advise(inputs, stage, memory.peakBytes, limitBytes);
    return {
      cacheDigest: joinDigests(stage.sources),
      ...(stage.name === undefined ? {} : { stage: stage.name }),
      rows: stage.sources.reduce((sum, { rows }) => sum + rows.indices.length, 0),
      steps: countAllSteps(inputs.stages),
      labels: base.labels,
      recompute: base.recompute === 'always',
      threads: base.threads ?? availableParallelism(),
      batch: { rows: batch.rows, length: batch.length },
      memory: { ...memory, limitBytes },
      fits: memory.peakBytes <= limitBytes,
      advice,
    };
  } finally {
    await inputs.close();
  }
}

interface StageForecast {
  readonly stage: StagePlan;
  readonly batch: BatchShape;
  readonly memory: MemoryForecast;
}

/** Of the stage that takes most: each gives back what it held. Changes hold in all of them. */
function forecast(inputs: TrainingInputs, changes: Partial<TrainingSettings>): StageForecast {
  return inputs.stages
    .map((stage) => forecastStage(inputs, stage, changes))
    .reduce((most, one) => (one.memory.peakBytes > most.memory.peakBytes ? one : most));
}

function forecastStage(
  { config, heldOut }: TrainingInputs,
  stage: StagePlan,
  changes: Partial<TrainingSettings>,
): StageForecast {
  const { settings, sources, resolved } = stage;
  const { cache, student, out } = settings;
  const changed = { ...settings, ...changes, cache, student, out };
  const order = openDataOrder(orderSources(sources), changed.seed);
  const columnCost = measureColumnCost(config);
  let position = order.start;
  let batch: BatchShape = { rows: 1, length: 1, stepTokens: 1 };
  const batches: BatchLayout[] = [];
  for (let step = 0; step < Math.min(settings.steps, STEPS_LAID_OUT); step++) {
    const { rows, next } = order.take(position, changed.batchTokens);
    position = next;
    const lengths = rows.map(({ source, row }) => sources[source]!.rows.lengths[row]!);
    const stepTokens = lengths.reduce((sum, length) => sum + length, 0);
    for (const group of groupByLength([...rows.keys()], lengths, changed.accumulate, columnCost)) {
      const sequences = group.map((at) => new Int32Array(lengths[at]!));
      const { rows: count, length, queryBlocks } = layOut(sequences, changed.batching, columnCost);
      batches.push({ rows: count, length, queryBlocks });
      if (count * length > batch.rows * batch.length) batch = { rows: count, length, stepTokens };
    }
  }
  const memory = forecastMemory({
    // What the run itself reads, but where another is tried.
    plan: Object.keys(changes).length === 0 ? stage.plan : planStudent(changed, stage, config),
    batch,
    layouts: gatherLayouts(batches),
    keptCacheBytes: sources.reduce(
      (sum, { cache }) => sum + measureKeptBatches(cache.manifest, selectLabels(resolved.objective)),
      0,
    ),
    prefetchSteps: changed.prefetchSteps,
    evaluates: heldOut !== undefined,
  });
  return { stage, batch, memory };
}

/** What could be changed, the least first: the same student in more time, then nearly the same, then another. */
function listChanges(
  { settings }: StagePlan,
  { config }: TrainingInputs,
): readonly (readonly [Partial<TrainingSettings>, string])[] {
  const { accumulate, chunkPositions, batchTokens, trainLayers, loraRank, optimiserState } = settings;
  const half = Math.ceil(config.layerCount / 2);
  const onlyLayers = trainLayers.every((entry) => !['embedding', 'norm', 'head'].includes(String(entry)));
  return [
    [{ recompute: 'always' }, 'the same student, about a third more time'],
    ...[2, 4, 8].map((times) => [{ accumulate: accumulate * times }, 'the same student'] as const),
    ...[128, 64, 32]
      .filter((size) => size < chunkPositions)
      .map((size) => [{ chunkPositions: size }, 'the same student, a little slower'] as const),
    ...(optimiserState === 'int8' ? [] : [[{ optimiserState: 'int8' }, 'steps differ by 1.4 %'] as const]),
    ...(trainLayers.includes('all') && loraRank === undefined
      ? [[{ trainLayers: [`last-${half}`] }, 'half of the layers stay as they are'] as const]
      : []),
    ...(loraRank === undefined && onlyLayers
      ? [[{ loraRank: 8, trainLayers }, 'adapters learn and nothing else; try 10 times the rate'] as const]
      : []),
    ...[2, 4].map((part) => [{ batchTokens: Math.ceil(batchTokens / part) }, 'smaller, noisier steps'] as const),
  ];
}

/** Changes one after the other, those that save something, until the run fits or there are no more. */
function advise(
  inputs: TrainingInputs,
  stage: StagePlan,
  peakBytes: number,
  limitBytes: number,
): readonly MemoryAdvice[] {
  const advice: MemoryAdvice[] = [];
  let [settings, peak]: [Partial<TrainingSettings>, number] = [{}, peakBytes];
  for (const [change, effect] of listChanges(stage, inputs)) {
    if (peak <= limitBytes) break;
    const tried = { ...settings, ...change };
    const { memory } = forecast(inputs, tried);
    const savedBytes = peak - memory.peakBytes;
    if (savedBytes < 0.01 * peakBytes) continue;
    [settings, peak] = [tried, memory.peakBytes];
    advice.push({ settings: change, flags: writeFlags(change, stage), effect, savedBytes, peakBytes: peak });
  }
  return advice;
}

const writeFlags = (change: Partial<TrainingSettings>, { settings }: StagePlan) =>
  Object.entries(change)
    .filter(([key, value]) => JSON.stringify(value) !== JSON.stringify(settings[key as keyof TrainingSettings]))
    .map(([key, value]) => `${flagOf(key)} ${String(value)}`)
    .join(' ');
