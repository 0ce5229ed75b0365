import { createReadStream } from 'node:fs';
import { access, readFile } from 'node:fs/promises';
import { totalmem } from 'node:os';
import { join } from 'node:path';
import { describeParameters } from '@stillhouse/checkpoint';
import { StillhouseError } from '@stillhouse/errors';
import { type Engine, openEngine } from '@stillhouse/runtime';
import {
  type CachedRow,
  type CacheSize,
  type CacheWriter,
  describeSize,
  type LabelledRow,
  labelPositions,
  type OutputMatrixSource,
  openCacheWriter,
  readManifest,
} from '@stillhouse/teacher-cache';
import type { Tokenizer } from '@stillhouse/tokenizer';
import { type BuildInputs, openBuildInputs, type Teacher } from './build-inputs.ts';
import { type BuildPlan, describePlan, matrixDtype } from './build-plan.ts';
import { type BuildProgress, type ProgressTracker, trackProgress } from './build-progress.ts';
import type { BuildSettings } from './build-settings.ts';
import { createRowScorer } from './row-scorer.ts';
import { checkWeightsFinite, createTeacherWeights, measureWeights, outputMatrixName } from './teacher-weights.ts';

export interface BuildStart extends BuildPlan {
  /** Finished by earlier runs of the same command. */
  readonly shardsDone: number;
  /** Where it is computed and why; null where nothing is. */
  readonly device: string | null;
  /** Whether the teacher's weights stay in memory or are read again for every shard; null without a teacher. */
  readonly weights: 'resident' | 'streamed' | null;
}

export interface BuildEvents {
  /** Once, before the first row is scored; not when the cache is complete already. */
  readonly onPlan?: (start: BuildStart) => void;
  readonly onProgress?: (progress: BuildProgress) => void;
}

export interface BuildResult {
  readonly out: string;
  /** The cache was complete before; nothing was done. */
  readonly wasComplete: boolean;
  readonly rows: number;
  readonly tokens: number;
  readonly labelPositions: number;
  readonly shards: number;
  /** Of these, finished by earlier runs. */
  readonly shardsDoneBefore: number;
  readonly size: CacheSize;
  /** Of this run; 0 where it had nothing to do. */
  readonly tokensPerSecond: number;
  readonly elapsedMs: number;
  readonly peakRssBytes: number;
  readonly cacheDigest: string;
}

/**
 * Scores the rows of a data file with a teacher and writes a teacher cache. What is wrong with the inputs is found
 * before anything is written. A build that was ended goes on where it was when it is called again, to the same bytes as
 * one that was not: a shard's labels depend on its rows and on the int8 scales, which are measured on the first shard
 * and kept in the cache. (`batchTokens`, `threads` and `device` may change the last bits of a float.)
 *
 * @throws StillhouseError of `openBuildInputs`, `openCacheWriter`, `RowScorer.score`, WEIGHT_NOT_FINITE, DATA_CHANGED
 */
export async function buildTeacherCache(settings: BuildSettings, events: BuildEvents = {}): Promise<BuildResult> {
  if (settings.dryRun) throw new TypeError('dryRun: call planBuild, this function builds');
  const startedAt = performance.now();
  const inputs = await openBuildInputs(settings);
  try {
    // A cache that was begun has this teacher's digest, or is refused: its weights were checked then.
    if (inputs.teacher !== null && !(await isBegun(inputs.out))) await checkTeacher(inputs.teacher);
    const { description, summary, out } = inputs;
    const writer = await openCacheWriter(out, description, { totalRows: summary.rowCount });
    try {
      const { completedShards, isComplete } = writer;
      const tokensPerSecond = isComplete ? 0 : await fillCache(settings, inputs, writer, events);
      const plan = describePlan(inputs);
      const manifest = await readManifest(out);
      return {
        out,
        wasComplete: isComplete,
        rows: plan.rows,
        tokens: plan.tokens,
        labelPositions: plan.labelPositions,
        shards: plan.shards,
        shardsDoneBefore: completedShards,
        size: describeSize(manifest),
        tokensPerSecond,
        elapsedMs: performance.now() - startedAt,
        peakRssBytes: process.resourceUsage().maxRSS * 1024,
        cacheDigest: manifest.digest,
      };
    } finally {
      await writer.close();
    }
  } finally {
    await inputs.close();
  }
}

const isBegun = (out: string) =>
  access(join(out, 'manifest.json')).then(
    () => true,
    () => false,
  );

function checkTeacher({ weights, config }: Teacher): Promise<void> {
  return checkWeightsFinite(
    weights,
    describeParameters(config).map(({ name }) => name),
  );
}

type Score = (rows: readonly CachedRow[], shard: number) => Promise<readonly LabelledRow[]>;

/** @returns tokens per second */
async function fillCache(
  settings: BuildSettings,
  inputs: BuildInputs,
  writer: CacheWriter,
  events: BuildEvents,
): Promise<number> {
  const { teacher, tokenizer, shards, description } = inputs;
  const start = { ...describePlan(inputs), shardsDone: writer.completedShards };
  if (tokenizer !== null && !writer.hasTokenizerFiles) await putTokenizer(writer, tokenizer);
  if (teacher !== null && description.labels.head && !writer.hasOutputMatrix) {
    await writer.putOutputMatrix(readOutputMatrix(teacher));
  }
  const { device, threads } = settings;
  const engine = teacher === null ? null : await openEngine({ device, ...(threads === undefined ? {} : { threads }) });
  try {
    const keepAll = teacher !== null && measureWeights(teacher.config) <= residentBudget();
    events.onPlan?.({
      ...start,
      device: engine && `${engine.device} (${engine.deviceReason})`,
      weights: teacher && (keepAll ? 'resident' : 'streamed'),
    });
    const progress = trackProgress(teacher?.config ?? null, shards, writer.completedShards);
    const score =
      teacher === null
        ? (rows: readonly CachedRow[]) => Promise.resolve(rows.map((row) => withoutLabels(row, settings.positions)))
        : await prepareScoring(engine!, settings, inputs, teacher, { writer, keepAll, progress, events });
    await writeShards(inputs, writer, score, (shard) => {
      // Counted whether or not anyone listens.
      const done = progress.finishShard(shard);
      events.onProgress?.(done);
    });
    return progress.tokensPerSecond;
  } finally {
    await engine?.close();
  }
}

const withoutLabels = (row: CachedRow, positions: BuildSettings['positions']): LabelledRow => ({
  row,
  positions: labelPositions(row.lossMask, positions),
});

async function prepareScoring(
  engine: Engine,
  { batchTokens, positions }: BuildSettings,
  { description }: BuildInputs,
  { config, weights: source }: Teacher,
  run: {
    readonly writer: CacheWriter;
    readonly keepAll: boolean;
    readonly progress: ProgressTracker;
    readonly events: BuildEvents;
  },
): Promise<Score> {
  const weights = createTeacherWeights(engine, source, config, { keepAll: run.keepAll });
  const scorer = await createRowScorer(engine, config, weights, { labels: description.labels, positions, batchTokens });
  return (rows, shard) =>
    scorer.score(rows, run.writer, (step) => {
      const done = run.progress.step(shard, step);
      run.events.onProgress?.(done);
    });
}

async function writeShards(
  inputs: BuildInputs,
  writer: CacheWriter,
  score: Score,
  onShard: (shard: number) => void,
): Promise<void> {
  const rows = inputs.rows(writer.shardRange(writer.completedShards)[0]);
  for (let shard = writer.completedShards; shard < writer.shardCount; shard++) {
    const [first, end] = writer.shardRange(shard);
    const members: CachedRow[] = [];
    while (members.length < end - first) {
      const { done, value } = await rows.next();
      if (done) refuseChangedData(inputs);
      members.push(value);
    }
    await writer.writeShard(shard, await score(members, shard));
    onShard(shard);
  }
  if ((await inputs.hashData()) !== inputs.description.data.sha256) refuseChangedData(inputs);
  await writer.finish();
}

function refuseChangedData({ description, out }: BuildInputs): never {
  throw new StillhouseError({
    code: 'DATA_CHANGED',
    where: description.data.name,
    problem: 'the data file changed while its rows were scored',
    remedy: `Delete ${out}, which may hold rows of both, and build it anew`,
  });
}

async function putTokenizer(writer: CacheWriter, { files }: Tokenizer): Promise<void> {
  const contents = files.map(async ({ name, path }) => ({ name, bytes: await readFile(path) }));
  await writer.putTokenizerFiles(await Promise.all(contents));
}

/** The output matrix as the teacher stores it, read as it is written. */
function readOutputMatrix({ config, weights }: Teacher): OutputMatrixSource {
  const name = outputMatrixName(config);
  const { dtype, file, offsetBytes, sizeBytes } = weights.tensors.get(name)!;
  const asStored = createReadStreamOf(file, offsetBytes, sizeBytes);
  return {
    dtype: matrixDtype(dtype),
    rows: config.vocabSize,
    columns: config.hiddenSize,
    // The cache has no float64.
    chunks: dtype === 'float64' ? readAsFloat32(weights, name) : asStored,
  };
}

async function* createReadStreamOf(file: string, start: number, sizeBytes: number): AsyncGenerator<Uint8Array> {
  yield* createReadStream(file, { start, end: start + sizeBytes - 1, highWaterMark: 4 << 20 });
}

async function* readAsFloat32(weights: Teacher['weights'], name: string): AsyncGenerator<Uint8Array> {
  yield new Uint8Array((await weights.readFloat32(name)).buffer);
}

/**
 * Weights stay in memory when they take at most this much. Reading a layer again costs a few percent of what it takes
 * to compute it for a shard of some thousand tokens, so only small teachers are worth the memory.
 */
const RESIDENT_SHARE = 0.1;

function residentBudget(): number {
  const limit = process.constrainedMemory() ?? 0;
  return RESIDENT_SHARE * (limit > 0 ? Math.min(limit, totalmem()) : totalmem());
}
