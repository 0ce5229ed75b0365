import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { writeFileAtomically } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { uploadTeacherHead } from '@stillhouse/objectives';
import { type Engine, openEngine } from '@stillhouse/runtime';
import { initialAdapter, isAdapterName } from './adapters.ts';
import { openDataOrder } from './data-order.ts';
import { locateDivergence } from './divergence-site.ts';
import { HELD_OUT_FILE, type HeldOutEvaluator, type HeldOutMetrics } from './held-out.ts';
import { learningRateAt } from './learning-rate.ts';
import { lossScalarsAt } from './loss-schedule.ts';
import { describeSums, METRICS_FILE, openStepLog, type StepMetrics } from './metrics.ts';
import { describeProjections, initialProjection } from './projections.ts';
import { nameCheckpoint, refuseDivergence } from './run-failures.ts';
import { prepareFolder } from './run-folder.ts';
import { saveStudent } from './save-student.ts';
import { loadStepData } from './step-data.ts';
import { measureColumnCost } from './step-layout.ts';
import { openStepReader } from './step-reader.ts';
import { createStudent, type Student } from './student.ts';
import { viewAsDecoder } from './student-decoder.ts';
import { openTensorboardLog } from './tensorboard-log.ts';
import { type RunIdentity, restoreCheckpoint, saveCheckpoint, type TrainingState } from './training-checkpoint.ts';
import { openTrainingInputs, type SharedInputs, type TrainingInputs } from './training-inputs.ts';
import type { TrainingSettings } from './training-settings.ts';
import {
  type CacheUse,
  describeCaches,
  joinDigests,
  orderSources,
  readSources,
  type TrainingSource,
} from './training-sources.ts';

export interface TrainingPlan {
  readonly steps: number;
  /** Done by the run that this one continues. */
  readonly stepsDone: number;
  readonly rows: number;
  readonly tokensPerEpoch: number;
  readonly labels: string;
  readonly device: string;
  /** Of several caches the digests of all, separated by commas. */
  readonly cacheDigest: string;
  readonly caches: readonly CacheUse[];
}

export interface TrainingEvents {
  readonly onPlan?: (plan: TrainingPlan) => void;
  readonly onStep?: (metrics: StepMetrics, steps: number) => void;
  /** Told after each evaluation on held-out rows. */
  readonly onHeldOut?: (metrics: HeldOutMetrics) => void;
  /** How to evaluate; `evalEvery` needs it. */
  readonly evaluate?: HeldOutEvaluator;
  /** Once aborted, the step under way is finished, a checkpoint saved, and the result is not `isFinished`. */
  readonly stopSignal?: AbortSignal;
}

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
  readonly cacheDigest: string;
  readonly caches: readonly CacheUse[];
}

/**
 * Trains a student from a teacher cache. The teacher is never loaded. Everything that could be wrong is checked
 * before the first step; a run that fails leaves metrics and checkpoints, and no model under its final name.
 * @throws StillhouseError of each part, and TRAINING_DIVERGED, RUN_EXISTS, RUN_ABSENT, NO_TRAINING_ROWS, ROW_TOO_LONG,
 *   EVALUATOR_ABSENT; what fails between steps says which checkpoint is whole
 */
export async function trainStudent(
  settings: TrainingSettings,
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
    await prepareFolder(inputs.settings);
    const { device, threads } = inputs.settings;
    // A step is proven on WebGPU and keeps everything there; CUDA copies its tensors at each run.
    const engine = await openEngine({
      device,
      candidates: ['webgpu', 'cuda'],
      ...(threads === undefined ? {} : { threads }),
    });
    try {
      return await runSteps(engine, inputs, events);
    } finally {
      await engine.close();
    }
  } finally {
    await inputs.close();
  }
}

async function openStudent(
  engine: Engine,
  { settings, sources, config, weights, learning, resolved }: TrainingInputs,
): Promise<Student> {
  const { objective, vocabSize } = resolved;
  const { trained, adapter } = learning;
  const newAdapter = adapter && initialAdapter(config, adapter, settings.seed);
  const { labels } = objective;
  // One matrix for all caches; with a codebook in it where they have that in common too.
  const [{ cache, hiddenScale }] = sources as [TrainingSource];
  const teacherHead =
    labels.kind === 'full'
      ? await uploadTeacherHead(engine, cache, labels.isCoded === true ? hiddenScale : undefined, vocabSize)
      : undefined;
  const projections = describeProjections(objective.features);
  return createStudent(engine, {
    config,
    float: 'float32',
    read: async (name) => {
      if (isAdapterName(name)) return newAdapter!(name);
      const index = projections.findIndex((one) => one.name === name);
      if (index < 0) return weights.readFloat32(name);
      return initialProjection(projections[index]!.teacherHidden, config.hiddenSize, settings.seed, index);
    },
    objective,
    scalars: settings,
    adamw: settings,
    vocabSize,
    chunkPositions: settings.chunkPositions,
    recompute: settings.recompute === 'always',
    selectTokens: settings.selectTokens,
    trained,
    ...(adapter === undefined ? {} : { adapter }),
    ...(teacherHead === undefined ? {} : { teacherHead }),
  });
}

function identify({ sources, config }: TrainingInputs, { parameters }: Student): RunIdentity {
  const configSha256 = createHash('sha256').update(JSON.stringify(config.raw)).digest('hex');
  return { cacheDigest: joinDigests(sources), configSha256, frozenSha256: parameters.frozenSha256 };
}

async function runSteps(engine: Engine, run: TrainingInputs, events: TrainingEvents): Promise<TrainingResult> {
  const { settings, sources, resolved, heldOut } = run;
  const { out, steps, resumeStep } = settings;
  const student = await openStudent(engine, run);
  const identity = identify(run, student);
  const restored = settings.resume
    ? await restoreCheckpoint(engine, out, student.state, {
        identity,
        ...(resumeStep === undefined ? {} : { step: resumeStep }),
      })
    : undefined;
  const order = openDataOrder(orderSources(sources), settings.seed);
  let state: TrainingState = restored ?? { step: 0, position: order.start, tokensSeen: 0, elapsedMs: 0 };
  const caches = describeCaches(sources, order.countEpochs(state.position));
  events.onPlan?.({
    steps,
    stepsDone: state.step,
    rows: caches.reduce((sum, { rows }) => sum + rows, 0),
    tokensPerEpoch: caches.reduce((sum, { tokens }) => sum + tokens, 0),
    caches,
    labels: settings.refine === 'always' ? `${settings.labels}, the head from top-k` : settings.labels,
    device: `${engine.device} (${engine.deviceReason})`,
    cacheDigest: joinDigests(sources),
  });
  const stepSources = readSources(run, settings);
  const stepDataOptions = { ...settings, columnCost: measureColumnCost(run.config) };
  const decoder = viewAsDecoder(run.config, 'float32', student.parameters);
  const log = await openStepLog<StepMetrics>(out, METRICS_FILE, state.step);
  const heldOutLog =
    heldOut === undefined ? undefined : await openStepLog<HeldOutMetrics>(out, HELD_OUT_FILE, state.step);
  // After the logs: what they have and it lacks is written to it first.
  const tensorboard = settings.tensorboard ? await openTensorboardLog(out, state.step) : undefined;
  let last: StepMetrics | undefined;
  let lastHeldOut: HeldOutMetrics | undefined;
  let savedStep = state.step;
  const firstStep = state.step;
  const firstElapsedMs = state.elapsedMs;
  const firstTokens = state.tokensSeen;
  const isStopped = () => events.stopSignal?.aborted === true;
  const save = async () => {
    if (state.step === savedStep) return;
    await saveCheckpoint(engine, out, student.state, state, identity, settings.keepCheckpoints);
    savedStep = state.step;
  };
  const evaluateIfDue = async () => {
    const { step } = state;
    if (heldOut === undefined || (step % heldOut.every !== 0 && step !== steps)) return;
    // A run that was stopped after its evaluation goes on behind it.
    if (heldOutLog!.newest === step) return;
    const startedAt = performance.now();
    const figures = await events.evaluate!(engine, decoder);
    lastHeldOut = { step, ...figures, elapsedMs: performance.now() - startedAt };
    await heldOutLog!.append(lastHeldOut);
    await tensorboard?.append('held-out', lastHeldOut);
    events.onHeldOut?.(lastHeldOut);
  };
  const takeStep = async () => {
    const startedAt = performance.now();
    const data = await reader.next();
    const dataWaitMs = performance.now() - startedAt;
    const step = state.step + 1;
    const scalars = settings.schedule === 'constant' ? undefined : lossScalarsAt(step, steps, settings);
    if (scalars !== undefined) student.setScalars(scalars);
    const { sums, gradientNorm } = await student.computeGradients(data.microBatches, data.denominator);
    if (!Number.isFinite(sums.loss) || !Number.isFinite(gradientNorm)) {
      const { microBatches, rowIds } = data;
      const isLossFinite = Number.isFinite(sums.loss);
      const site = await locateDivergence(engine, decoder, student.parameters, microBatches, rowIds, isLossFinite);
      refuseDivergence(step, sums.loss, gradientNorm, data.rowIds, site, out);
    }
    const lr = learningRateAt(step, settings);
    await student.update(step, lr, gradientNorm);
    const elapsedMs = state.elapsedMs + performance.now() - startedAt;
    state = { step, position: data.next, tokensSeen: state.tokensSeen + data.tokens, elapsedMs };
    last = {
      step,
      ...describeSums(sums, resolved.objective),
      lr,
      ...scalars,
      gradNorm: gradientNorm,
      tokens: data.tokens,
      paddingShare: data.paddingShare,
      targetTokens: data.targets,
      tokensSeen: state.tokensSeen,
      dataWaitMs,
      elapsedMs,
    };
    await log.append(last);
    await tensorboard?.append('train', last);
    events.onStep?.(last, steps);
  };
  const reader = openStepReader({
    load: (position, signal) => loadStepData(stepSources, order, position, stepDataOptions, signal),
    position: state.position,
    steps: steps - state.step,
    prefetchSteps: settings.prefetchSteps,
  });
  try {
    if (!isStopped()) await evaluateIfDue();
    while (state.step < steps && !isStopped()) {
      await takeStep();
      if (state.step % settings.checkpointEvery === 0 && state.step < steps) await save();
      if (!isStopped()) await evaluateIfDue();
    }
    if (state.step < steps) await save();
    else await saveTrained(engine, student, run);
  } catch (error) {
    throw nameCheckpoint(error, savedStep);
  } finally {
    await reader.close();
    await log.close();
    await heldOutLog?.close();
    await tensorboard?.close();
  }
  const { peakRssBytes } = await engine.memory();
  const seconds = (state.elapsedMs - firstElapsedMs) / 1000;
  const result: TrainingResult = {
    out,
    isFinished: state.step >= steps,
    steps: state.step,
    last,
    lastHeldOut,
    tokensPerSecond: state.step === firstStep ? 0 : (state.tokensSeen - firstTokens) / seconds,
    peakRssBytes,
    cacheDigest: joinDigests(sources),
    caches: describeCaches(sources, order.countEpochs(state.position)),
  };
  if (!result.isFinished) return result;
  await writeFileAtomically(
    join(out, 'training.json'),
    `${JSON.stringify({ ...result, cache: settings.cache, metrics: METRICS_FILE }, null, 2)}\n`,
  );
  return result;
}

async function saveTrained(
  engine: Engine,
  { parameters }: Student,
  { settings, config }: TrainingInputs,
): Promise<void> {
  const { out, student, saveDtype } = settings;
  await saveStudent(engine, parameters, { out, student, config, dtype: saveDtype });
}
