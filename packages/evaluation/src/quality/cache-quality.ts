import { stat } from 'node:fs/promises';
import { openCacheAt } from '@stillhouse/cache-remote';
import { type ModelConfig, type ModelWeights, openModelWeights, readModelConfig } from '@stillhouse/checkpoint';
import { writeFileAtomically } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { computeFinalStates, uploadWeight } from '@stillhouse/model-runner';
import { checkModelTokenizer, describeOpenLabels, sharedVocabulary } from '@stillhouse/objectives';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import { type Engine, openEngine } from '@stillhouse/runtime';
import { requireSetting } from '@stillhouse/settings';
import type { CacheManifest, TeacherCache } from '@stillhouse/teacher-cache';
import { listLabelModes } from './cache-modes.ts';
import type { LabelMode } from './label-mode.ts';
import { type LabelQuality, measureLabelQuality } from './label-quality.ts';
import { openReference, type QualityReference } from './quality-reference.ts';
import { type SampledRow, sampleRows } from './quality-sample.ts';
import type { QualitySettings } from './quality-settings.ts';

export interface CacheQuality extends LabelQuality {
  readonly cache: string;
  readonly cacheDigest: string;
  readonly student: string;
  /** Where the true distribution came from. */
  readonly reference: string;
  readonly rows: number;
  readonly temperatures: readonly number[];
  /**
   * What full labels need once, whatever the number of tokens: output matrix and scales or codebook; 0 without them.
   */
  readonly fixedBytes: number;
  readonly elapsedMs: number;
  readonly peakRssBytes: number;
  readonly device: string;
  readonly recipe: QualitySettings;
  /** Where this was written, null for nowhere. */
  readonly out: string | null;
}

export interface QualityEvents {
  readonly onPlan?: (plan: {
    readonly rows: number;
    readonly positions: number;
    readonly modes: readonly string[];
    readonly device: string;
  }) => void;
  readonly onStage?: (stage: 'teacher' | 'student' | 'labels') => void;
  /** Positions whose labels are measured. */
  readonly onProgress?: (done: number) => void;
}

/**
 * Holds every mode of labels that a cache supports against its teacher's true distribution, as a student sees it, and
 * writes the table as JSON.
 * @throws StillhouseError of each part, and SETTING_MISSING, LABELS_NOT_IN_CACHE, REFERENCE_MISSING, TEACHER_MISMATCH,
 *   OUT_IS_FOLDER
 */
export async function measureCacheQuality(
  settings: QualitySettings,
  events: QualityEvents = {},
): Promise<CacheQuality> {
  const location = requireSetting(settings, 'cache', 'CACHE');
  requireSetting(settings, 'student', 'DIR');
  const out = settings.out ?? (await besideCache(location));
  if (settings.out !== undefined) await refuseFolder(settings.out);
  const cache = await openCacheAt(location);
  try {
    const reference = await openReference(cache, settings.teacher);
    try {
      const result = await measure(await prepare(settings, cache, reference), out, events);
      if (out !== null) await writeFileAtomically(out, `${JSON.stringify(result, null, 2)}\n`);
      return result;
    } finally {
      await reference.close();
    }
  } finally {
    await cache.close();
  }
}

/** What is measured, checked before a model is loaded. */
interface QualityTask {
  readonly settings: QualitySettings;
  readonly cache: TeacherCache;
  readonly reference: QualityReference;
  readonly config: ModelConfig;
  /** Ids that take part. */
  readonly vocabSize: number;
  readonly sample: readonly SampledRow[];
  readonly modes: readonly LabelMode[];
  readonly fixedBytes: number;
}

async function prepare(
  settings: QualitySettings,
  cache: TeacherCache,
  reference: QualityReference,
): Promise<QualityTask> {
  const { temperatures, positionsLimit } = settings;
  const student = settings.student!;
  const config = await readModelConfig(student);
  const description = describeOpenLabels(cache);
  const vocabSize = sharedVocabulary(description, config.vocabSize, cache.folder);
  await checkModelTokenizer(cache, student);
  const hasFinal = description.labels.hidden?.layers.includes('final') === true;
  const hiddenScale = hasFinal ? await cache.hiddenScale('final') : undefined;
  const { bytesPerToken, fixedBytes } = measureBytes(cache.manifest);
  const candidates = reference.rows === undefined ? {} : { candidates: reference.rows };
  const sample = await sampleRows(cache, config, { vocabSize, positionsLimit, ...candidates });
  const modes = listLabelModes({
    ...{ description, vocabSize, bytesPerToken },
    ...(hiddenScale === undefined ? {} : { hiddenScale }),
    readRow: (row, select) => cache.readRow(sample[row]!.index, select),
  }).filter(({ labelsAt }) => temperatures.some((temperature) => labelsAt(temperature) !== undefined));
  if (modes.length > 0) return { settings, cache, reference, config, vocabSize, sample, modes, fixedBytes };
  throw new StillhouseError({
    code: 'LABELS_NOT_IN_CACHE',
    where: cache.folder,
    problem: `the cache holds no soft labels at T = ${temperatures.join(', ')}`,
    expected: 'top-k, sampled, or final hidden states with the output matrix',
    remedy: 'Choose other --temperatures, or another cache',
  });
}

async function measure(task: QualityTask, out: string | null, events: QualityEvents): Promise<CacheQuality> {
  const { settings, cache, reference, config, sample, modes, fixedBytes } = task;
  const { temperatures, device, threads } = settings;
  const student = settings.student!;
  const weights = await openModelWeights(student, config);
  try {
    const engine = await openEngine({ device, ...(threads === undefined ? {} : { threads }) });
    try {
      const positions = sample.reduce((sum, one) => sum + one.positions.length, 0);
      const where = engine.deviceReason;
      events.onPlan?.({ rows: sample.length, positions, modes: modes.map(({ name }) => name), device: where });
      const startedAt = performance.now();
      const quality = await measureModes(engine, weights, task, events);
      const { peakRssBytes } = await engine.memory();
      return {
        ...{ cache: cache.folder, cacheDigest: cache.digest, student, reference: reference.source },
        ...{ rows: sample.length, temperatures, fixedBytes },
        ...quality,
        ...{ elapsedMs: performance.now() - startedAt, peakRssBytes, device: where, recipe: settings, out },
      };
    } finally {
      await engine.close();
    }
  } finally {
    await weights.close();
  }
}

/** Both models' states at the positions of the sample, then all modes of labels. */
async function measureModes(
  engine: Engine,
  weights: ModelWeights,
  { settings, reference, vocabSize, sample, modes }: QualityTask,
  events: QualityEvents,
): Promise<LabelQuality> {
  const float: FloatDtype = 'float32';
  events.onStage?.('teacher');
  const teacherStates = await reference.readStates(engine, sample, float);
  events.onStage?.('student');
  const requests = sample.map(({ row: { inputIds }, positions }) => ({ inputIds, positions }));
  const studentStates = await computeFinalStates(engine, weights, requests, float);
  const teacherHead = cutRows(engine, await reference.uploadHead(engine, float), vocabSize);
  const studentHead = cutRows(engine, await uploadWeight(engine, weights.head, float), vocabSize);
  events.onStage?.('labels');
  const { temperatures, chunkPositions } = settings;
  const states = { rows: sample, teacherStates, teacherHead, studentStates, studentHead };
  const onProgress = events.onProgress === undefined ? {} : { onProgress: events.onProgress };
  return measureLabelQuality(engine, states, modes, { temperatures, chunkPositions, float, ...onProgress });
}

/** What each group of the shards takes at a position, and what labels need besides the shards. */
function measureBytes({ shards, outputMatrix, scales }: CacheManifest) {
  const sizes = new Map<string, number>();
  let positions = 0;
  for (const { files, positionCount } of shards) {
    positions += positionCount;
    for (const [group, file] of Object.entries(files)) sizes.set(group, (sizes.get(group) ?? 0) + file!.sizeBytes);
  }
  const ofFinal = scales.filter(({ layer }) => layer === 'final');
  return {
    bytesPerToken: Object.fromEntries([...sizes].map(([group, sizeBytes]) => [group, sizeBytes / positions])),
    fixedBytes: ofFinal.reduce((sum, { sizeBytes }) => sum + sizeBytes, outputMatrix?.sizeBytes ?? 0),
  };
}

const cutRows = (engine: Engine, head: ReturnType<Engine['view']>, rows: number) =>
  engine.view(head, { offset: 0, shape: [rows, head.shape[1]!] });

const isFolder = (path: string) =>
  stat(path).then(
    (found) => found.isDirectory(),
    () => false,
  );

/** `CACHE.quality.json` for a cache on this machine, for nothing but its own files may stand inside. */
async function besideCache(location: string): Promise<string | null> {
  return (await isFolder(location)) ? `${location.replace(/\/+$/, '')}.quality.json` : null;
}

async function refuseFolder(out: string): Promise<void> {
  if (!(await isFolder(out))) return;
  throw new StillhouseError({
    code: 'OUT_IS_FOLDER',
    where: `--out ${out}`,
    problem: 'the result is one file and this is a folder',
    remedy: 'Give a file name, such as quality.json',
  });
}
