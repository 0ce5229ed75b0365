import { access } from 'node:fs/promises';
import { totalmem } from 'node:os';
import { join } from 'node:path';
import { openCacheAt } from '@stillhouse/cache-remote';
import {
  assertFinite,
  describeParameters,
  type ModelConfig,
  openModelWeights,
  readModelConfig,
  type TensorSource,
} from '@stillhouse/checkpoint';
import { makeFolder, writeFileAtomically } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { checkModelTokenizer, describeOpenLabels, uploadTeacherHead } from '@stillhouse/objectives';
import type { Engine } from '@stillhouse/runtime';
import { openEngine } from '@stillhouse/runtime';
import { requireSetting } from '@stillhouse/settings';
import type { HiddenScale, TeacherCache } from '@stillhouse/teacher-cache';
import { measureActivations } from './activation-store.ts';
import type { DataPosition } from './data-order.ts';
import { learningRateAt } from './learning-rate.ts';
import { METRICS_FILE, openMetricsLog, type StepMetrics } from './metrics.ts';
import { type ResolvedObjective, resolveObjective } from './objective-from-settings.ts';
import { PROJECTION_NAME } from './parameters.ts';
import { RECIPE_FILE, readRecipe, refuseOtherRecipe } from './recipe.ts';
import { saveStudent } from './save-student.ts';
import { initialProjection } from './seeded-weights.ts';
import { loadStepData, type StepData, type TrainingRows } from './step-data.ts';
import { createStudent, type Student } from './student.ts';
import { listCheckpoints, restoreCheckpoint, saveCheckpoint, type TrainingState } from './training-checkpoint.ts';
import type { TrainingSettings } from './training-settings.ts';

export interface TrainingPlan {
  readonly steps: number;
  readonly rows: number;
  readonly tokensPerEpoch: number;
  readonly labels: string;
  readonly device: string;
  readonly cacheDigest: string;
}

export interface TrainingEvents {
  readonly onPlan?: (plan: TrainingPlan) => void;
  readonly onStep?: (metrics: StepMetrics, steps: number) => void;
}

export interface TrainingResult {
  readonly out: string;
  readonly steps: number;
  readonly last: StepMetrics | undefined;
  readonly tokensPerSecond: number;
  readonly peakRssBytes: number;
  readonly cacheDigest: string;
}

/** Settings with the paths that a run cannot do without. */
type RunSettings = TrainingSettings & { readonly cache: string; readonly student: string; readonly out: string };

function requirePaths(settings: TrainingSettings): RunSettings {
  for (const key of ['cache', 'student', 'out'] as const) requireSetting(settings, key, 'DIR');
  return settings as RunSettings;
}

/**
 * Trains a student from a teacher cache. The teacher is never loaded. Everything that could be wrong is checked
 * before the first step; a run that fails leaves metrics and checkpoints, and no model under its final name.
 * @throws StillhouseError of each part, and TRAINING_DIVERGED, RUN_EXISTS, RUN_ABSENT, NO_TRAINING_ROWS, ROW_TOO_LONG
 */
export async function trainStudent(given: TrainingSettings, events: TrainingEvents = {}): Promise<TrainingResult> {
  const settings = requirePaths(given);
  const cache = await openCacheAt(settings.cache);
  const config = await readModelConfig(settings.student);
  const weights = await openModelWeights(settings.student, config);
  try {
    const available = describeOpenLabels(cache);
    const hasFinal = available.labels.hidden?.layers.includes('final') === true;
    const hiddenScale = hasFinal ? await cache.hiddenScale('final') : undefined;
    const resolved = resolveObjective(settings, available, config, settings.cache, hiddenScale);
    await checkModelTokenizer(cache, settings.student);
    for (const { name } of describeParameters(config)) {
      assertFinite(name, await weights.readFloat32(name), weights.tensors.get(name)!.file);
    }
    const rows = await selectRows(cache, config, settings);
    const resolvedSettings = resolveOpen(settings, resolved, rows, config);
    await prepareFolder(resolvedSettings);
    const engine = await openEngine({
      device: settings.device,
      ...(settings.threads === undefined ? {} : { threads: settings.threads }),
    });
    try {
      return await runSteps(
        engine,
        { settings: resolvedSettings, cache, config, weights, rows, resolved, hiddenScale },
        events,
      );
    } finally {
      await engine.close();
    }
  } finally {
    await weights.close();
    await cache.close();
  }
}

type ResolvedSettings = RunSettings & {
  readonly steps: number;
  readonly labels: 'full' | 'topk' | 'sampled' | 'none';
  readonly refine: 'always' | 'never';
  readonly recompute: 'always' | 'never';
};

/** Share of the machine's memory that activations may take before `auto` computes them again instead. */
const ACTIVATIONS_SHARE = 0.25;

/** Settings that were left open, by what the data and the machine are: the recipe that is written has none. */
function resolveOpen(
  settings: RunSettings,
  { objective }: ResolvedObjective,
  rows: TrainingRows,
  config: ModelConfig,
): ResolvedSettings {
  const tokens = rows.lengths.reduce((sum, length) => sum + length, 0);
  return {
    ...settings,
    labels: objective.labels.kind,
    refine: isRefined(objective) ? 'always' : 'never',
    steps: settings.steps ?? Math.max(1, Math.round(tokens / settings.batchTokens)),
    recompute: settings.recompute === 'auto' ? chooseRecompute(settings, rows, config) : settings.recompute,
  };
}

const isRefined = ({ labels }: ResolvedObjective['objective']) =>
  labels.kind === 'full' && labels.refinement !== undefined;

function chooseRecompute(
  { batchTokens, accumulate }: RunSettings,
  rows: TrainingRows,
  config: ModelConfig,
): 'always' | 'never' {
  const longest = rows.lengths.reduce((most, length) => Math.max(most, length), 1);
  const rowCount = Math.ceil(batchTokens / accumulate / longest) + 1;
  return measureActivations(config, rowCount, longest) > ACTIVATIONS_SHARE * totalmem() ? 'always' : 'never';
}

async function selectRows(
  cache: TeacherCache,
  config: ModelConfig,
  { split, cache: where }: RunSettings,
): Promise<TrainingRows> {
  const indices: number[] = [];
  const lengths: number[] = [];
  let index = 0;
  for await (const { row } of cache.rows(undefined, { topk: false, hidden: [] })) {
    const place = index++;
    if (split !== undefined && row.split !== split) continue;
    if (row.inputIds.length > config.maxPositions) {
      throw new StillhouseError({
        code: 'ROW_TOO_LONG',
        where: `${where}, row ${row.id}`,
        problem: "the row is longer than the student's context",
        expected: `at most ${config.maxPositions} tokens`,
        got: String(row.inputIds.length),
        remedy: 'Build the cache with a smaller --max-length',
      });
    }
    const largest = row.inputIds.reduce((most, id) => Math.max(most, id), 0);
    if (largest >= config.vocabSize) {
      throw new StillhouseError({
        code: 'VOCABULARY_MISMATCH',
        where: `${where}, row ${row.id}`,
        problem: 'the row has an id that the student does not know',
        expected: `ids below ${config.vocabSize}`,
        got: String(largest),
        remedy: 'Use a student with the same tokenizer as the cache',
      });
    }
    indices.push(place);
    lengths.push(row.inputIds.length);
  }
  if (indices.length === 0) {
    throw new StillhouseError({
      code: 'NO_TRAINING_ROWS',
      where,
      problem: split === undefined ? 'the cache has no rows' : `no row is of split ${split}`,
      remedy: 'Choose another cache or another --split',
    });
  }
  return { indices, lengths: Int32Array.from(lengths) };
}

async function prepareFolder(settings: ResolvedSettings): Promise<void> {
  const { out, resume } = settings;
  const before = await readRecipe(out);
  if (resume) {
    if (before === undefined) {
      throw new StillhouseError({
        code: 'RUN_ABSENT',
        where: out,
        problem: 'there is no run to resume',
        remedy: 'Start one without --resume',
      });
    }
    refuseOtherRecipe(before, settings, join(out, RECIPE_FILE));
  } else {
    const isTaken =
      before !== undefined || (await listCheckpoints(out)).length > 0 || (await exists(join(out, 'config.json')));
    if (isTaken) {
      throw new StillhouseError({
        code: 'RUN_EXISTS',
        where: out,
        problem: 'the folder holds a run or a model already',
        remedy: 'Continue it with --resume, or choose another --out',
      });
    }
  }
  await makeFolder(out);
  await writeFileAtomically(join(out, RECIPE_FILE), `${JSON.stringify(settings, null, 2)}\n`);
}

const exists = (path: string) =>
  access(path).then(
    () => true,
    () => false,
  );

interface Run {
  readonly settings: ResolvedSettings;
  readonly cache: TeacherCache;
  readonly config: ModelConfig;
  readonly weights: TensorSource;
  readonly rows: TrainingRows;
  readonly resolved: ResolvedObjective;
  /** Of the final hidden states. */
  readonly hiddenScale: HiddenScale | undefined;
}

async function openStudent(
  engine: Engine,
  { settings, cache, config, weights, resolved, hiddenScale }: Run,
): Promise<Student> {
  const { objective, vocabSize } = resolved;
  const teacherHead =
    objective.labels.kind === 'full' ? await uploadTeacherHead(engine, cache, hiddenScale, vocabSize) : undefined;
  return createStudent(engine, {
    config,
    float: 'float32',
    read: (name) =>
      name === PROJECTION_NAME
        ? Promise.resolve(initialProjection(objective.hidden!.teacherHidden, config.hiddenSize, settings.seed))
        : weights.readFloat32(name),
    objective,
    scalars: settings,
    adamw: settings,
    vocabSize,
    chunkPositions: settings.chunkPositions,
    recompute: settings.recompute === 'always',
    ...(teacherHead === undefined ? {} : { teacherHead }),
  });
}

async function runSteps(engine: Engine, run: Run, events: TrainingEvents): Promise<TrainingResult> {
  const { settings, cache, rows, resolved, hiddenScale } = run;
  const { out, steps } = settings;
  const student = await openStudent(engine, run);
  const parameters = student.parameters.all;
  const restored = settings.resume ? await restoreCheckpoint(engine, out, parameters) : undefined;
  let state: TrainingState = restored ?? { step: 0, position: { epoch: 0, consumed: 0 }, tokensSeen: 0, elapsedMs: 0 };
  events.onPlan?.({
    steps,
    rows: rows.indices.length,
    tokensPerEpoch: rows.lengths.reduce((sum, length) => sum + length, 0),
    labels: settings.refine === 'always' ? `${settings.labels}, the head from top-k` : settings.labels,
    device: `${engine.device} (${engine.deviceReason})`,
    cacheDigest: cache.digest,
  });
  const { labels } = cache.description;
  const stepDataOptions = {
    labels: {
      objective: resolved.objective,
      temperature: settings.temperature,
      temperatures: labels.topk?.temperatures ?? [],
      ...(labels.sampled ? { sampledTemperature: labels.sampled.temperature } : {}),
      vocabSize: resolved.vocabSize,
      float: 'float32' as const,
      ...(hiddenScale === undefined ? {} : { hiddenScale }),
    },
    seed: settings.seed,
    batchTokens: settings.batchTokens,
    accumulate: settings.accumulate,
  };
  const load = (position: DataPosition) => loadStepData(cache, rows, position, stepDataOptions);
  const log = await openMetricsLog(out, state.step);
  let last: StepMetrics | undefined;
  const firstStep = state.step;
  const firstElapsedMs = state.elapsedMs;
  const firstTokens = state.tokensSeen;
  try {
    let upcoming = state.step < steps ? load(state.position) : undefined;
    while (upcoming !== undefined) {
      const startedAt = performance.now();
      const data: StepData = await upcoming;
      // The next step's labels are read while this one computes; a failure to read belongs to that step.
      upcoming = state.step + 1 < steps ? load(data.next) : undefined;
      upcoming?.catch(() => undefined);
      const step = state.step + 1;
      const { sums, gradientNorm } = await student.computeGradients(data.microBatches, data.targets);
      if (!Number.isFinite(sums.loss) || !Number.isFinite(gradientNorm))
        refuseDivergence(step, sums.loss, gradientNorm, data.rowIds, (await listCheckpoints(out)).at(-1), out);
      const lr = learningRateAt(step, settings);
      await student.update(step, lr, gradientNorm);
      const elapsedMs = state.elapsedMs + performance.now() - startedAt;
      state = { step, position: data.next, tokensSeen: state.tokensSeen + data.tokens, elapsedMs };
      last = {
        step,
        ...sums,
        lr,
        gradNorm: gradientNorm,
        tokens: data.tokens,
        targetTokens: data.targets,
        tokensSeen: state.tokensSeen,
        elapsedMs,
      };
      await log.append(last);
      events.onStep?.(last, steps);
      if (step % settings.checkpointEvery === 0 && step < steps)
        await saveCheckpoint(engine, out, parameters, state, settings.keepCheckpoints);
    }
  } finally {
    await log.close();
  }
  await saveStudent(engine, student.parameters, {
    out,
    student: settings.student,
    config: run.config,
    dtype: settings.saveDtype,
  });
  const { peakRssBytes } = await engine.memory();
  const seconds = (state.elapsedMs - firstElapsedMs) / 1000;
  const result: TrainingResult = {
    out,
    steps: state.step,
    last,
    tokensPerSecond: state.step === firstStep ? 0 : (state.tokensSeen - firstTokens) / seconds,
    peakRssBytes,
    cacheDigest: cache.digest,
  };
  await writeFileAtomically(
    join(out, 'training.json'),
    `${JSON.stringify({ ...result, cache: settings.cache, metrics: METRICS_FILE }, null, 2)}\n`,
  );
  return result;
}

/** Rows named in an error; a step can hold hundreds. */
const NAMED_ROWS = 12;

function refuseDivergence(
  step: number,
  loss: number,
  gradientNorm: number,
  rowIds: readonly string[],
  lastCheckpoint: number | undefined,
  out: string,
): never {
  const distinct = [...new Set(rowIds)];
  const rest = distinct.length - NAMED_ROWS;
  const named = `${distinct.slice(0, NAMED_ROWS).join(', ')}${rest > 0 ? ` and ${rest} more` : ''}`;
  throw new StillhouseError({
    code: 'TRAINING_DIVERGED',
    where: `${out}, step ${step}`,
    problem: `the loss or its gradient is not a finite number (rows ${named})`,
    got: `loss ${loss}, gradient norm ${gradientNorm}`,
    remedy:
      lastCheckpoint === undefined
        ? 'Nothing was saved: look at these rows, lower --lr or --clip, and start again in another --out'
        : `The checkpoint of step ${lastCheckpoint} is whole: look at these rows, or start again with a lower --lr or --clip`,
  });
}
