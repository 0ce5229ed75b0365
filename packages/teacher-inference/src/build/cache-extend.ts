import { basename } from 'node:path';
import { hashFile } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { type EncodedRow, summariseRows } from '@stillhouse/rows';
import { requireSetting } from '@stillhouse/settings';
import {
  type CacheDescription,
  type CacheExtension,
  type CacheManifest,
  type CacheSize,
  type DataIdentity,
  describeSize,
  openCache,
  openCacheExtension,
  readManifest,
} from '@stillhouse/teacher-cache';
import type { Tokenizer } from '@stillhouse/tokenizer';
import { asBuildSettings, type ExtendSettings, extendLabels } from '../settings/extend-settings.ts';
import { needTeacher } from '../settings/label-settings.ts';
import { openKnownTeacher, openKnownTokenizer } from '../teacher/known-teacher.ts';
import { openTeacherSession, type Teacher } from '../teacher/teacher.ts';
import { countShards, encodeRows, everyRow, identifyGenerator, pinLabels, type ShardCounts } from './build-inputs.ts';
import { type BuildProgress, tellProgress, trackProgress } from './build-progress.ts';
import { scoreShards, takeRows } from './score-shards.ts';

export interface ExtendEvents {
  /** Once, before the first row is scored; not where there is nothing to do. */
  readonly onPlan?: (start: ExtendStart) => void;
  readonly onProgress?: (progress: BuildProgress) => void;
}

export interface ExtendStart {
  readonly labels: CacheDescription['labels'];
  readonly rowsAdded: number;
  /** Shards that get something, and how many of these earlier runs have finished. */
  readonly shards: number;
  readonly shardsDone: number;
  readonly device: string | null;
}

export interface ExtendResult {
  readonly out: string;
  /** The cache had all of this before; nothing was done. */
  readonly wasComplete: boolean;
  readonly rowsAdded: number;
  readonly rows: number;
  readonly labels: CacheDescription['labels'];
  readonly size: CacheSize;
  readonly tokensPerSecond: number;
  readonly elapsedMs: number;
  readonly formerDigest: string;
  readonly cacheDigest: string;
}

/**
 * Adds to a cache what it lacks of what is asked for: rows of a further data file, labels, layers, a larger k. Only
 * that is computed; every other file stays as it is. A cache that has all of it already is left alone.
 * @throws StillhouseError SETTING_MISSING, EXTEND_PLACE, TEACHER_MISMATCH, TOKENIZER_MISMATCH, ROW_ID_DUPLICATE,
 *   DATA_CHANGED, and those of `openCacheExtension`, `openBuildInputs`, `RowScorer.score`
 */
export async function extendTeacherCache(settings: ExtendSettings, events: ExtendEvents = {}): Promise<ExtendResult> {
  const startedAt = performance.now();
  const cache = requireSetting(settings, 'cache', 'CACHE');
  const out = resolvePlace(settings, cache);
  const base = await readManifest(cache);
  const labels = extendLabels(base.description.labels, settings);
  const added = await readAddedRows(settings, base);
  const asked: AskedExtension = { settings, cache, base, labels, added };
  const inputs = await openExtendInputs(asked);
  try {
    const { furtherData = [] } = base.description;
    const description: CacheDescription = {
      ...base.description,
      teacher: inputs.identity,
      labels: await pinAdded(asked, inputs.teacher),
      ...(added === undefined ? {} : { furtherData: [...furtherData, added.identity] }),
    };
    const rowsAdded = inputs.shards.reduce((sum, { rows }) => sum + rows, 0);
    const totalRows = base.rows.planned + rowsAdded;
    const identified = added === undefined ? description : withRowCount(description, rowsAdded);
    const generator = await identifyGenerator();
    const extension = await openCacheExtension({ cache, out, description: identified, totalRows, generator });
    const { isComplete } = extension.writer;
    let tokensPerSecond = 0;
    try {
      if (!isComplete) {
        tokensPerSecond = await fillExtension(asked, { ...inputs, rowsAdded }, extension, events);
      }
    } finally {
      await extension.close();
    }
    const manifest = await readManifest(out);
    return {
      out,
      wasComplete: isComplete,
      rowsAdded,
      rows: manifest.rows.stored,
      labels: manifest.description.labels,
      size: describeSize(manifest),
      tokensPerSecond,
      elapsedMs: performance.now() - startedAt,
      formerDigest: base.digest,
      cacheDigest: manifest.digest,
    };
  } finally {
    await inputs.teacher?.close();
  }
}

/** What is asked for, beside the cache as it is. */
interface AskedExtension {
  readonly settings: ExtendSettings;
  readonly cache: string;
  readonly base: CacheManifest;
  readonly labels: CacheDescription['labels'];
  /** undefined where no rows are added. */
  readonly added: AddedRows | undefined;
}

/** Top-k labels that are new get their pinned ids; those that are there keep theirs. */
async function pinAdded(
  { settings, cache, base: { description }, labels }: AskedExtension,
  teacher: Teacher | null,
): Promise<CacheDescription['labels']> {
  if (description.labels.topk !== null || labels.topk === null) return labels;
  const { tokenizer: named, teacher: folder } = settings;
  const tokenizer =
    description.tokenizer &&
    (await openKnownTokenizer(cache, description.tokenizer, { tokenizer: named, teacher: folder }));
  return pinLabels(labels, asBuildSettings(settings), teacher, tokenizer);
}

function resolvePlace({ out, inPlace }: ExtendSettings, cache: string): string {
  if ((out === undefined) !== inPlace) {
    throw new StillhouseError({
      code: 'EXTEND_PLACE',
      where: 'cache extend',
      problem: 'it is not said where the extended cache goes',
      expected: 'either --out DIR or --in-place',
      got: inPlace ? 'both' : 'neither',
    });
  }
  return out ?? cache;
}

type AddedData = DataIdentity & { readonly limit: number | null };

interface AddedRows {
  readonly data: string;
  readonly identity: AddedData;
}

/** The data file, unless the cache has its rows already. */
async function readAddedRows(
  { data, limit }: ExtendSettings,
  { description }: CacheManifest,
): Promise<AddedRows | undefined> {
  if (data === undefined) return undefined;
  const { sha256 } = await hashFile(data).catch((cause: NodeJS.ErrnoException) => {
    throw new StillhouseError({
      code: 'DATA_NOT_READABLE',
      where: data,
      problem: cause.code === 'ENOENT' ? 'there is no such file' : `the data file cannot be read (${cause.code})`,
      remedy: 'Check the path given with --data',
      cause,
    });
  });
  const known = [{ ...description.data, limit: description.limit }, ...(description.furtherData ?? [])];
  if (known.some((one) => one.sha256 === sha256 && one.limit === (limit ?? null))) return undefined;
  return { data, identity: { sha256, name: basename(data), rowCount: 0, limit: limit ?? null } };
}

/** The number of rows is known only once they are read. */
function withRowCount(description: CacheDescription, rowCount: number): CacheDescription {
  const further = description.furtherData!;
  return { ...description, furtherData: [...further.slice(0, -1), { ...further.at(-1)!, rowCount }] };
}

interface ExtendInputs {
  /** null where no labels are computed. */
  readonly teacher: Teacher | null;
  readonly identity: CacheDescription['teacher'];
  readonly tokenizer: Tokenizer | null;
  /** Of the rows that are added. */
  readonly shards: readonly ShardCounts[];
}

async function openExtendInputs(asked: AskedExtension): Promise<ExtendInputs> {
  const { settings, cache, base, labels, added } = asked;
  const { description } = base;
  const isMore = JSON.stringify(labels) !== JSON.stringify(description.labels);
  const opened =
    needTeacher(labels) && (isMore || added !== undefined)
      ? await openKnownTeacher(requireSetting(settings, 'teacher', 'DIR'), labels, description.teacher)
      : undefined;
  const teacher = opened?.teacher ?? null;
  try {
    const folders = { tokenizer: settings.tokenizer, teacher: settings.teacher };
    const tokenizer =
      added === undefined || description.tokenizer === null
        ? null
        : await openKnownTokenizer(cache, description.tokenizer, folders);
    const shards: { rows: number; tokens: number; positions: number }[] = [];
    if (added !== undefined) {
      const rows = encodeRows(addedLimits(settings, base), added.data, { teacher, tokenizer }, everyRow);
      await summariseRows(countShards(await refuseKnownRows(cache, added.data, rows), description, shards));
    }
    return { teacher, identity: opened?.identity ?? description.teacher, tokenizer, shards };
  } catch (error) {
    await teacher?.close();
    throw error;
  }
}

const addedLimits = ({ limit }: ExtendSettings, { description }: CacheManifest) => ({
  limit,
  maxLength: description.maxLength ?? undefined,
});

async function refuseKnownRows(
  cache: string,
  data: string,
  rows: AsyncGenerator<EncodedRow>,
): Promise<AsyncGenerator<EncodedRow>> {
  const opened = await openCache(cache, { groups: ['rows'] });
  const known = new Set(opened.rowIds);
  await opened.close();
  return (async function* () {
    for await (const row of rows) {
      if (known.has(row.id)) {
        throw new StillhouseError({
          code: 'ROW_ID_DUPLICATE',
          where: `${data}, line ${row.line}`,
          problem: `the cache has a row with the id ${JSON.stringify(row.id)} already`,
          expected: 'an id of its own for every row',
          remedy: 'Leave out the rows that the cache has, or rename them',
        });
      }
      yield row;
    }
  })();
}

/** @returns tokens per second */
async function fillExtension(
  { settings, base, added }: AskedExtension,
  inputs: ExtendInputs & { readonly rowsAdded: number },
  extension: CacheExtension,
  events: ExtendEvents,
): Promise<number> {
  const { teacher, tokenizer, shards, rowsAdded } = inputs;
  const { writer } = extension;
  const { labels, positions } = writer.description;
  if (teacher !== null && labels.head && !writer.hasOutputMatrix) {
    await writer.putOutputMatrix(teacher.readOutputMatrix());
  }
  const session = await openTeacherSession(teacher, { ...asBuildSettings(settings), positions });
  try {
    events.onPlan?.({
      labels,
      rowsAdded,
      shards: writer.shards.length,
      shardsDone: writer.completedShards,
      device: session.device,
    });
    const former = base.shards.map((shard) => ({
      rows: shard.rowCount,
      tokens: shard.tokenCount,
      positions: shard.positionCount,
    }));
    const counts = writer.shards.map((shard) => [...former, ...shards][shard]!);
    const progress = trackProgress(teacher?.work ?? null, counts, writer.completedShards);
    const ahead = writer.shards.slice(writer.completedShards).find((shard) => shard >= base.shards.length);
    const firstNew = ahead === undefined ? Infinity : writer.shardRange(ahead)[0] - base.rows.planned;
    const newRows =
      added && encodeRows(addedLimits(settings, base), added.data, { teacher, tokenizer }, (row) => row >= firstNew);
    await scoreShards(writer, session, {
      readRows: async (shard, count) =>
        (await extension.readFormerRows(shard)) ?? takeRows(newRows!, count, () => refuseChange(added!.data)),
      labelsOf: (shard) => extension.labelsOf(shard),
      ...tellProgress(progress, events.onProgress),
    });
    if (added !== undefined && (await hashFile(added.data)).sha256 !== added.identity.sha256) refuseChange(added.data);
    await writer.finish();
    return progress.tokensPerSecond;
  } finally {
    await session.close();
  }
}

function refuseChange(data: string): never {
  throw new StillhouseError({
    code: 'DATA_CHANGED',
    where: data,
    problem: 'the data file changed while its rows were scored',
    remedy: 'Delete the unfinished extension, extend.json in the folder of the cache, and extend again',
  });
}
