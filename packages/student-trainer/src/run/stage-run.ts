import { createHash } from 'node:crypto';
import { isAdapterName } from '@stillhouse/checkpoint';
import type { FolderLock } from '@stillhouse/durable-files';
import type { DecoderOnDevice } from '@stillhouse/model-runner';
import { uploadTeacherHead } from '@stillhouse/objectives';
import type { Engine } from '@stillhouse/runtime';
import { type DataOrder, openDataOrder } from '../data/data-order.ts';
import { loadStepData, type StepData } from '../data/step-data.ts';
import { measureColumnCost } from '../data/step-layout.ts';
import { openStepReader, type StepReader } from '../data/step-reader.ts';
import {
  type CacheUse,
  describeCaches,
  joinDigests,
  orderSources,
  readSources,
  type TrainingSource,
} from '../data/training-sources.ts';
import { learningRateAt } from '../optimiser/learning-rate.ts';
import { initialProjection } from '../plan/projections.ts';
import { countAllSteps, endOf, type StagePlan } from '../plan/stage-plan.ts';
import type { TrainingInputs } from '../plan/training-inputs.ts';
import { type CarriedWeights, carryWeights, joinState } from '../save/carried-weights.ts';
import { saveStudent } from '../save/save-student.ts';
import {
  type FoundCheckpoint,
  type RunIdentity,
  restoreCheckpoint,
  saveCheckpoint,
  type TrainingState,
} from '../save/training-checkpoint.ts';
import { lossScalarsAt } from '../settings/loss-schedule.ts';
import { initialAdapter } from '../step/adapters.ts';
import { openStudent, type StepResult, type Student, type StudentState } from '../step/student.ts';
import { viewAsDecoder } from '../step/student-decoder.ts';
import type { HeldOutMetrics } from '../watch/held-out.ts';
import { describeSums, type StepMetrics } from '../watch/metrics.ts';
import { openRunLog, type RunLog } from '../watch/run-log.ts';
import { locateDivergence } from './divergence-site.ts';
import { nameCheckpoint, refuseDivergence } from './run-failures.ts';
import type { TrainingEvents } from './training-events.ts';

/** How far a run is, over all stages; filled in as it goes. */
export interface RunProgress {
  state: TrainingState | undefined;
  log: RunLog | undefined;
  last: StepMetrics | undefined;
  lastHeldOut: HeldOutMetrics | undefined;
  /** Step of the newest checkpoint. */
  savedStep: number;
  /** Caches as the stage that ran last has used them. */
  caches: readonly CacheUse[];
}

export interface StageRun {
  readonly inputs: TrainingInputs;
  readonly stage: StagePlan;
  readonly events: TrainingEvents;
  readonly progress: RunProgress;
  /** Weights that earlier stages have changed; they are handed over. */
  readonly carried: CarriedWeights;
  /** Where the run goes on from, in its first stage that is run. */
  readonly checkpoint: FoundCheckpoint | undefined;
  /** Of the run's folder: asked before anything in it is replaced. */
  readonly lock: FolderLock;
  /** Told once the stage is ready to begin, or to go on, from `state`. */
  readonly onReady: (state: TrainingState, caches: readonly CacheUse[]) => void;
}

async function openStageStudent(
  engine: Engine,
  { config, weights }: TrainingInputs,
  { settings, sources, plan }: StagePlan,
  carried: CarriedWeights,
): Promise<Student> {
  const { adapter, projections, vocabSize } = plan;
  const newAdapter = adapter && initialAdapter(config, adapter, settings.seed);
  const { labels } = plan.objective;
  // One matrix for all caches; with a codebook in it where they have that in common too.
  const [{ cache, hiddenScale }] = sources as [TrainingSource];
  const teacherHead =
    labels.kind === 'full'
      ? await uploadTeacherHead(engine, cache, labels.isCoded === true ? hiddenScale : undefined, vocabSize)
      : undefined;
  return openStudent(engine, plan, {
    float: 'float32',
    read: async (name) => {
      const given = carried.get(name);
      if (given !== undefined) return given;
      if (isAdapterName(name)) return newAdapter!(name);
      const index = projections.findIndex((one) => one.name === name);
      if (index < 0) return weights.tensors.get(name)!.read('float32');
      return initialProjection(projections[index]!.teacherHidden, config.hiddenSize, settings.seed, index);
    },
    scalars: settings,
    adamw: settings,
    ...(teacherHead === undefined ? {} : { teacherHead }),
  });
}

function identify({ config }: TrainingInputs, { sources }: StagePlan, { parameters }: Student): RunIdentity {
  const configSha256 = createHash('sha256').update(JSON.stringify(config.raw)).digest('hex');
  return { cacheDigest: joinDigests(sources), configSha256, frozenSha256: parameters.frozenSha256 };
}

/** A stage under way. */
interface OpenStage extends StageRun {
  readonly engine: Engine;
  readonly student: Student;
  readonly decoder: DecoderOnDevice;
  readonly identity: RunIdentity;
  /** What its checkpoints hold. */
  readonly kept: StudentState;
  readonly order: DataOrder;
  readonly log: RunLog;
  /** Steps done, by the run as a whole. */
  state: TrainingState;
}

/**
 * Takes the steps of one stage, from its beginning or from a checkpoint. Weights go on from stage to stage; the
 * optimiser's moments begin anew with each: they are means over gradients of an objective that is no longer there, and
 * a second moment of another scale would set every rate wrong for its first hundreds of steps.
 * @returns the weights for the next stage; `undefined` when the run ends here, finished or stopped
 */
export async function runStage(engine: Engine, run: StageRun): Promise<CarriedWeights | undefined> {
  const { inputs, stage, events, progress } = run;
  const [lastStep, allSteps] = [endOf(stage), countAllSteps(inputs.stages)];
  const carriedNames = new Set(run.carried.keys());
  const open = await openStage(engine, run, carriedNames);
  const isStopped = () => events.stopSignal?.aborted === true;
  const reader = openReader(open);
  try {
    if (!isStopped()) await evaluateIfDue(open);
    while (open.state.step < lastStep && !isStopped()) {
      await takeStep(open, reader);
      if (open.state.step % inputs.settings.checkpointEvery === 0 && open.state.step < lastStep) await save(open);
      if (!isStopped()) await evaluateIfDue(open);
    }
    if (open.state.step === allSteps) await saveResult(open);
    else await save(open);
    progress.caches = describeCaches(stage.sources, open.order.countEpochs(open.state.position));
    return open.state.step === lastStep && lastStep < allSteps
      ? await carryWeights(engine, open.student.parameters, carriedNames)
      : undefined;
  } catch (error) {
    throw nameCheckpoint(error, progress.savedStep);
  } finally {
    await reader.close();
  }
}

async function openStage(engine: Engine, run: StageRun, carriedNames: ReadonlySet<string>): Promise<OpenStage> {
  const { inputs, stage, progress, checkpoint } = run;
  const { config, heldOut, settings } = inputs;
  const student = await openStageStudent(engine, inputs, stage, run.carried);
  const identity = identify(inputs, stage, student);
  const kept = joinState(student, carriedNames);
  const order = openDataOrder(orderSources(stage.sources), stage.settings.seed);
  const begun = { step: 0, tokensSeen: 0, elapsedMs: 0, ...progress.state, position: order.start };
  const state: TrainingState =
    checkpoint === undefined
      ? { ...begun, ...nameOf(stage) }
      : await restoreCheckpoint(engine, checkpoint, kept, identity);
  if (checkpoint !== undefined) progress.savedStep = state.step;
  progress.caches = describeCaches(stage.sources, order.countEpochs(state.position));
  run.onReady(state, progress.caches);
  const decoder = viewAsDecoder(config, 'float32', student.parameters);
  const logs = { lastStep: state.step, evaluates: heldOut !== undefined, tensorboard: settings.tensorboard };
  progress.log ??= await openRunLog(settings.out, logs);
  progress.state = state;
  return { ...run, engine, student, decoder, identity, kept, order, log: progress.log, state };
}

const nameOf = ({ name }: StagePlan) => (name === undefined ? {} : { stage: name });

function openReader({ inputs, stage, order, state }: OpenStage): StepReader {
  const { settings } = stage;
  const sources = readSources(stage, settings);
  const options = { ...settings, columnCost: measureColumnCost(inputs.config) };
  return openStepReader({
    load: (position, signal) => loadStepData(sources, order, position, { ...options, signal }),
    position: state.position,
    steps: endOf(stage) - state.step,
    prefetchSteps: settings.prefetchSteps,
  });
}

async function save({ engine, inputs, lock, progress, kept, state, identity }: OpenStage): Promise<void> {
  if (state.step === progress.savedStep) return;
  const { out, keepCheckpoints } = inputs.settings;
  await lock.requireHeld();
  await saveCheckpoint(engine, out, { tensors: kept, state, identity }, keepCheckpoints);
  progress.savedStep = state.step;
}

async function saveResult({ engine, inputs: { config, settings }, lock, student }: OpenStage): Promise<void> {
  const { out, student: from, saveDtype } = settings;
  await lock.requireHeld();
  await saveStudent(engine, student.parameters, { out, student: from, config, dtype: saveDtype });
}

async function evaluateIfDue({ engine, inputs, events, progress, log, decoder, state }: OpenStage): Promise<void> {
  const { heldOut, stages } = inputs;
  const { step } = state;
  if (heldOut === undefined || (step % heldOut.every !== 0 && step !== countAllSteps(stages))) return;
  // A run that was stopped after its evaluation goes on behind it.
  if (log.newestHeldOut === step) return;
  const startedAt = performance.now();
  const figures = await events.evaluate!(engine, decoder);
  progress.lastHeldOut = { step, ...figures, elapsedMs: performance.now() - startedAt };
  await log.appendHeldOut(progress.lastHeldOut);
  events.onHeldOut?.(progress.lastHeldOut);
}

async function takeStep(open: OpenStage, reader: StepReader): Promise<void> {
  const { inputs, stage, events, progress, student, state } = open;
  const { settings, resolved, stepsBefore } = stage;
  const startedAt = performance.now();
  const data = await reader.next();
  const dataWaitMs = performance.now() - startedAt;
  const step = state.step + 1;
  const ownStep = step - stepsBefore;
  const scalars = settings.schedule === 'constant' ? undefined : lossScalarsAt(ownStep, settings.steps, settings);
  if (scalars !== undefined) student.setScalars(scalars);
  const result = await student.computeGradients(data.microBatches, data.denominator);
  await refuseNonFinite(open, data, result);
  const lr = learningRateAt(ownStep, settings);
  await student.update(ownStep, lr, result.gradientNorm);
  const elapsedMs = state.elapsedMs + performance.now() - startedAt;
  const tokensSeen = state.tokensSeen + data.tokens;
  open.state = { step, ...nameOf(stage), position: data.next, tokensSeen, elapsedMs };
  progress.state = open.state;
  progress.last = {
    step,
    ...nameOf(stage),
    ...describeSums(result.sums, resolved.objective),
    lr,
    ...scalars,
    gradNorm: result.gradientNorm,
    tokens: data.tokens,
    paddingShare: data.paddingShare,
    targetTokens: data.targets,
    tokensSeen,
    dataWaitMs,
    elapsedMs,
  };
  await open.log.appendStep(progress.last);
  events.onStep?.(progress.last, countAllSteps(inputs.stages));
}

async function refuseNonFinite(
  { engine, inputs, decoder, student, state }: OpenStage,
  { microBatches, rowIds }: StepData,
  { sums: { loss }, gradientNorm }: StepResult,
): Promise<void> {
  const isLossFinite = Number.isFinite(loss);
  if (isLossFinite && Number.isFinite(gradientNorm)) return;
  const step = { microBatches, rowIds, isLossFinite };
  const site = await locateDivergence(engine, decoder, student.parameters, step);
  refuseDivergence({ step: state.step + 1, loss, gradientNorm, rowIds }, site, inputs.settings.out);
}
