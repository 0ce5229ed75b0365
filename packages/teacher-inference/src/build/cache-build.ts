import { access } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { isStillhouseError, StillhouseError } from '@stillhouse/errors';
import {
  type CachedRow,
  type CacheSize,
  type CacheWriter,
  listUnfinishedParts,
  mergeCache,
  openCacheWriter,
  type Partition,
  readManifest,
  type UnfinishedPart,
} from '@stillhouse/teacher-cache';
import type { BuildSettings } from '../settings/build-settings.ts';
import { openTeacherSession, type TeacherSession } from '../teacher/teacher.ts';
import { type BuildInputs, openBuildInputs } from './build-inputs.ts';
import { type BuildPlan, describePlan } from './build-plan.ts';
import { type BuildProgress, tellProgress, trackProgress } from './build-progress.ts';
import { parsePartition } from './partition-setting.ts';
import { type ShardWork, scoreShards, takeRows } from './score-shards.ts';
import { readTokenizerFiles } from './tokenizer-files.ts';

export interface BuildStart extends BuildPlan {
  /** null where the whole cache is built. */
  readonly partition: Partition | null;
  readonly shardsOfPartition: number;
  /** Of these, finished by earlier runs of the same command. */
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
  /** The cache, or the part, was complete before; nothing was done. */
  readonly wasComplete: boolean;
  /** null where the whole cache was built. Then all counts are of the part. */
  readonly partition: Partition | null;
  /** The parts that are to be finished before the cache is there. */
  readonly unfinishedParts: readonly UnfinishedPart[];
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
  /** null as long as parts are missing. */
  readonly cacheDigest: string | null;
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
  const partition = parsePartition(settings.partition);
  const inputs = await openBuildInputs(settings);
  try {
    // A cache that was begun has this teacher's digest, or is refused: its weights were checked then.
    await inputs.teacher?.check(await isBegun(inputs.out));
    const { description, summary, out, shards } = inputs;
    const options = { totalRows: summary.rowCount, ...(partition === undefined ? {} : { partition }) };
    const writer = await openCacheWriter(out, description, options);
    const { completedShards, isComplete } = writer;
    let tokensPerSecond = 0;
    let size: CacheSize;
    try {
      if (!isComplete) tokensPerSecond = await fillCache(settings, inputs, writer, events);
      size = writer.size;
    } finally {
      await writer.close();
    }
    const unfinishedParts = partition === undefined ? [] : await mergeWhenFinished(out);
    const own = writer.shards.map((shard) => shards[shard]!);
    const sum = (key: 'rows' | 'tokens' | 'positions') => own.reduce((total, shard) => total + shard[key], 0);
    return {
      out,
      wasComplete: isComplete,
      partition: partition ?? null,
      unfinishedParts,
      rows: sum('rows'),
      tokens: sum('tokens'),
      labelPositions: sum('positions'),
      shards: writer.shards.length,
      shardsDoneBefore: completedShards,
      size,
      tokensPerSecond,
      elapsedMs: performance.now() - startedAt,
      peakRssBytes: process.resourceUsage().maxRSS * 1024,
      cacheDigest: unfinishedParts.length > 0 ? null : (await readManifest(out)).digest,
    };
  } finally {
    await inputs.close();
  }
}

/** The last part to be finished merges them all. @returns the parts that are missing before that can be */
async function mergeWhenFinished(out: string): Promise<readonly UnfinishedPart[]> {
  const unfinished = await listUnfinishedParts(out);
  if (unfinished.length > 0 && !(await isMerged(out))) return unfinished;
  // Two parts that finish together see each other finished: one merges, the other waits for it.
  for (;;) {
    try {
      await mergeCache(out);
      return [];
    } catch (error) {
      if (!isStillhouseError(error, 'CACHE_IN_USE')) throw error;
      await sleep(200);
    }
  }
}

const isMerged = (out: string) =>
  readManifest(out).then(
    ({ complete }) => complete,
    () => false,
  );

async function isBegun(out: string): Promise<boolean> {
  const tries = await Promise.allSettled(['manifest.json', 'parts/plan.json'].map((name) => access(join(out, name))));
  return tries.some(({ status }) => status === 'fulfilled');
}

/** Fills what is missing. @returns tokens per second */
async function fillCache(
  settings: BuildSettings,
  inputs: BuildInputs,
  writer: CacheWriter,
  events: BuildEvents,
): Promise<number> {
  const { teacher, tokenizer, shards, description } = inputs;
  if (tokenizer !== null && !writer.hasTokenizerFiles) {
    await writer.putTokenizerFiles(await readTokenizerFiles(tokenizer));
  }
  if (teacher !== null && description.labels.head && !writer.hasOutputMatrix) {
    await writer.putOutputMatrix(teacher.readOutputMatrix());
  }
  const session = await openTeacherSession(teacher, settings);
  try {
    events.onPlan?.({
      ...describePlan(inputs),
      shardsDone: writer.completedShards,
      partition: parsePartition(settings.partition) ?? null,
      shardsOfPartition: writer.shards.length,
      device: session.device,
      weights: session.weights,
    });
    const own = writer.shards.map((shard) => shards[shard]!);
    const progress = trackProgress(teacher?.work ?? null, own, writer.completedShards);
    await calibrate(inputs, writer, session);
    await writeShards(inputs, writer, session, tellProgress(progress, events.onProgress));
    return progress.tokensPerSecond;
  } finally {
    await session.close();
  }
}

/**
 * What is measured on the first shard, for a partition that does not have it: taken from the folder, or else measured
 * by scoring that shard too, to the same numbers.
 */
async function calibrate(inputs: BuildInputs, writer: CacheWriter, session: TeacherSession): Promise<void> {
  const next = writer.shards[writer.completedShards];
  if (next === undefined || next === 0 || (await writer.adoptCalibration())) return;
  const [, end] = writer.shardRange(0);
  const rows: CachedRow[] = [];
  for await (const row of inputs.rows((number) => number < end)) rows.push(row);
  await session.score(rows, inputs.description.labels, writer);
}

async function writeShards(
  inputs: BuildInputs,
  writer: CacheWriter,
  session: TeacherSession,
  events: Pick<ShardWork, 'onStep' | 'onShard'>,
): Promise<void> {
  const { rowsPerShard, labels } = inputs.description;
  const ahead = new Set(writer.shards.slice(writer.completedShards));
  const rows = inputs.rows((row) => ahead.has(Math.floor(row / rowsPerShard)));
  await scoreShards(writer, session, {
    readRows: (_, count) => takeRows(rows, count, () => refuseChangedData(inputs)),
    labelsOf: () => labels,
    ...events,
  });
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
