import { join } from 'node:path';
import { type FolderLock, writeFileAtomically } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { openEngine } from '@stillhouse/runtime';
import { type CacheUse, joinDigests } from '../data/training-sources.ts';
import { countAllSteps, findStage, type StagePlan, TRAINING_DEVICES } from '../plan/stage-plan.ts';
import { openTrainingInputs, type SharedInputs, type TrainingInputs } from '../plan/training-inputs.ts';
import { type CarriedWeights, namesBefore } from '../save/carried-weights.ts';
import {
  type FoundCheckpoint,
  findCheckpoint,
  readCheckpointWeights,
  type TrainingState,
} from '../save/training-checkpoint.ts';
import { makeRecipe } from '../settings/recipe.ts';
import type { StagedSettings } from '../settings/stage-settings.ts';
import type { HeldOutMetrics } from '../watch/held-out.ts';
import { METRICS_FILE, type StepMetrics } from '../watch/metrics.ts';
import { openRunFolder } from './run-folder.ts';
import { type RunProgress, runStage } from './stage-run.ts';
import type { StageSummary, TrainingEvents, TrainingStart } from './training-events.ts';

export interface TrainingResult {
  readonly out: string;
  /** False where the run was stopped: then there is a checkpoint to resume from and no student yet. */
  readonly isFinished: boolean;
  /** Steps done. */
  readonly steps: number;
  readonly last: StepMetrics | undefined;
  readonly lastHeldOut: HeldOutMetrics | undefined;
  readonly tokensPerSecond: number;
  readonly peakRssBytes: number;
  /**
   * On CUDA: what was taken of the device's memory at the end of a stage, at most. Nothing is given back before, so it
   * is the peak.
   */
  readonly deviceBytes?: number;
  readonly cacheDigest: string;
  readonly caches: readonly CacheUse[];
  readonly stages?: readonly StageSummary[];
}

/**
 * Trains a student from a teacher cache. The teacher is never loaded. Everything that could be wrong is checked
 * before the first step, of all stages; a run that fails leaves metrics and checkpoints, and no model under its final
 * name.
 * @throws StillhouseError of each part, and TRAINING_DIVERGED, RUN_EXISTS, RUN_ABSENT, RUN_IN_USE, RUN_LOCK_LOST,
 *   NO_TRAINING_ROWS, ROW_TOO_LONG, EVALUATOR_ABSENT; what fails between steps says which checkpoint is whole
 */
export async function trainStudent(
  settings: StagedSettings,
  events: TrainingEvents = {},
  shared: SharedInputs = {},
): Promise<TrainingResult> {
  const inputs = await openTrainingInputs(settings, shared);
  try {
    if (inputs.heldOut !== undefined && events.evaluate === undefined) {
      throw new StillhouseError({
        code: 'EVALUATOR_ABSENT',
        where: 'trainStudent',
        problem: 'the settings ask for evaluation during training and no evaluator was given',
        remedy: 'Pass `evaluate` with the events, or leave evalEvery out',
      });
    }
    const lock = await openRunFolder(inputs.settings, makeRecipe(inputs.settings, inputs.stages));
    try {
      return await runStages(inputs, events, lock);
    } finally {
      await lock.release();
    }
  } finally {
    await inputs.close();
  }
}

async function runStages(inputs: TrainingInputs, events: TrainingEvents, lock: FolderLock): Promise<TrainingResult> {
  const { stages, settings } = inputs;
  const { out, precision, threads, resume, resumeStep } = settings;
  let { device } = settings;
  let checkpoint = resume ? await findCheckpoint(out, resumeStep) : undefined;
  const first = findStage(stages, checkpoint?.step ?? 0);
  const progress: RunProgress = {
    state: undefined,
    log: undefined,
    last: undefined,
    lastHeldOut: undefined,
    savedStep: 0,
    caches: [],
  };
  let begun: TrainingState | undefined;
  let peakRssBytes = 0;
  let deviceBytes: number | undefined;
  let carried = await readCarried(inputs, first, checkpoint);
  try {
    for (const stage of stages.slice(first)) {
      // An engine for each: what a stage held on the device is given back as a whole.
      const engine = await openEngine({
        device,
        precision,
        candidates: TRAINING_DEVICES,
        ...(threads === undefined ? {} : { threads }),
      });
      // Chosen once: another trial could decide otherwise in the middle of a run.
      device = engine.device;
      try {
        const next = await runStage(engine, {
          ...{ inputs, stage, events, lock, progress, carried, checkpoint },
          onReady: (state, caches) => {
            if (begun !== undefined) return;
            begun = state;
            const where = engine.deviceReason;
            events.onPlan?.({ ...describePlan(stages, stage, caches), stepsDone: state.step, device: where });
          },
        });
        const memory = await engine.memory();
        peakRssBytes = Math.max(peakRssBytes, memory.peakRssBytes);
        if (memory.device !== undefined) deviceBytes = Math.max(deviceBytes ?? 0, memory.device.usedBytes);
        if (next === undefined || events.stopSignal?.aborted === true) break;
        carried = next;
        checkpoint = undefined;
      } finally {
        await engine.close();
      }
    }
  } finally {
    await progress.log?.close();
  }
  const result = describeResult(inputs, progress, begun!, { peakRssBytes, deviceBytes });
  if (!result.isFinished) return result;
  await writeFileAtomically(
    join(out, 'training.json'),
    `${JSON.stringify({ ...result, cache: settings.cache, metrics: METRICS_FILE }, null, 2)}\n`,
  );
  return result;
}

function describeResult(
  { stages, settings: { out } }: TrainingInputs,
  { state, last, lastHeldOut, caches }: RunProgress,
  begun: TrainingState,
  { peakRssBytes, deviceBytes }: { readonly peakRssBytes: number; readonly deviceBytes: number | undefined },
): TrainingResult {
  const { step, tokensSeen, elapsedMs } = state!;
  const seconds = (elapsedMs - begun.elapsedMs) / 1000;
  return {
    out,
    isFinished: step >= countAllSteps(stages),
    steps: step,
    last,
    lastHeldOut,
    tokensPerSecond: step === begun.step ? 0 : (tokensSeen - begun.tokensSeen) / seconds,
    peakRssBytes,
    ...(deviceBytes === undefined ? {} : { deviceBytes }),
    cacheDigest: joinDigests(stages[0]!.sources),
    caches,
    ...summariseStages(stages),
  };
}

/** What stages before this one have changed, from the checkpoint that the run goes on from. */
async function readCarried(
  { stages }: TrainingInputs,
  stage: number,
  checkpoint: FoundCheckpoint | undefined,
): Promise<CarriedWeights> {
  if (checkpoint === undefined || stage === 0) return new Map();
  return readCheckpointWeights(checkpoint, namesBefore(stages, stage));
}

function describePlan(
  stages: readonly StagePlan[],
  { settings, sources }: StagePlan,
  caches: readonly CacheUse[],
): Omit<TrainingStart, 'stepsDone' | 'device'> {
  return {
    steps: countAllSteps(stages),
    rows: caches.reduce((sum, { rows }) => sum + rows, 0),
    tokensPerEpoch: caches.reduce((sum, { tokens }) => sum + tokens, 0),
    caches,
    labels: nameLabels(settings),
    cacheDigest: joinDigests(sources),
    ...summariseStages(stages),
  };
}

const nameLabels = ({ labels, refine }: StagePlan['settings']) =>
  refine === 'always' ? `${labels}, the head from top-k` : labels;

function summariseStages(stages: readonly StagePlan[]): { readonly stages?: readonly StageSummary[] } {
  if (stages[0]!.name === undefined) return {};
  return {
    stages: stages.map(({ name, settings, sources }) => ({
      name: name!,
      steps: settings.steps,
      rows: sources.reduce((sum, { rows }) => sum + rows.indices.length, 0),
      labels: nameLabels(settings),
    })),
  };
}
