import { hashFile } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { requireSetting } from '@stillhouse/settings';
import {
  type CachedRow,
  type CacheRepair,
  type DamagedShard,
  type DataRange,
  type HiddenLayer,
  listData,
  openCacheRepair,
  type VerifyReport,
  verifyCache,
} from '@stillhouse/teacher-cache';
import type { Tokenizer } from '@stillhouse/tokenizer';
import { BUILD_SETTINGS } from '../settings/build-settings.ts';
import { needTeacher } from '../settings/label-settings.ts';
import type { RepairSettings } from '../settings/repair-settings.ts';
import { openKnownTeacher, openKnownTokenizer } from '../teacher/known-teacher.ts';
import { openTeacherSession, type Teacher, type TeacherSession, withoutLabels } from '../teacher/teacher.ts';
import { encodeRows } from './build-inputs.ts';
import { readTokenizerFiles } from './tokenizer-files.ts';

export interface RepairEvents {
  /** Once, with the paths of all files that are damaged or missing, if there are any. */
  readonly onDamage?: (damaged: readonly string[]) => void;
  readonly onFile?: (done: number, of: number) => void;
}

export interface RepairResult {
  readonly cache: string;
  readonly cacheDigest: string;
  /** Files that were damaged or missing and have their bytes again. */
  readonly repaired: readonly string[];
  /** What a check of the whole cache finds afterwards. */
  readonly report: VerifyReport;
  readonly elapsedMs: number;
}

/**
 * Hashes every file of a cache and computes those anew that are damaged or missing, and nothing else: rows from the
 * data, labels by the teacher from the rows, tokenizer and output matrix from their folders. A file is replaced only by
 * one with the hash that the manifest says. A killed repair is called again.
 * @throws StillhouseError SETTING_MISSING naming what is needed, TEACHER_MISMATCH, TOKENIZER_MISMATCH, DATA_MISMATCH,
 *   CACHE_REPAIR_DIFFERS, and those of `openCacheRepair`, `RowScorer.score`
 */
export async function repairTeacherCache(settings: RepairSettings, events: RepairEvents = {}): Promise<RepairResult> {
  const startedAt = performance.now();
  const cache = requireSetting(settings, 'cache', 'CACHE');
  const repair = await openCacheRepair(cache);
  try {
    if (repair.damaged.length > 0) {
      events.onDamage?.(repair.damaged);
      await mend(settings, cache, repair, events);
    }
  } finally {
    await repair.close();
  }
  return {
    cache,
    cacheDigest: repair.manifest.digest,
    repaired: repair.damaged,
    report: await verifyCache(cache),
    elapsedMs: performance.now() - startedAt,
  };
}

/** Whether states of a model are needed: labels or scales are damaged. */
const needsScoring = ({ shards, scales }: CacheRepair) =>
  scales.length > 0 || shards.some(({ groups }) => groups.some((group) => group !== 'rows'));

async function mend(settings: RepairSettings, cache: string, repair: CacheRepair, events: RepairEvents): Promise<void> {
  const { description } = repair.manifest;
  const isScoring = needsScoring(repair);
  const teacher =
    isScoring || repair.isOutputMatrixDamaged
      ? (await openKnownTeacher(requireSetting(settings, 'teacher', 'DIR'), description.labels, description.teacher))
          .teacher
      : null;
  let session: TeacherSession | undefined;
  try {
    const folders = { tokenizer: settings.tokenizer, teacher: settings.teacher };
    const openTokenizer = async () =>
      description.tokenizer === null ? null : openKnownTokenizer(cache, description.tokenizer, folders);
    await mendTokenizer(repair, openTokenizer);
    if (teacher !== null && repair.isOutputMatrixDamaged) await repair.restoreOutputMatrix(teacher.readOutputMatrix());
    const source = await openRows(settings, repair, teacher, openTokenizer);
    let done = repair.damaged.length - repair.shards.reduce((sum, { groups }) => sum + groups.length, 0);
    const count = (files: number) => {
      done += files;
      events.onFile?.(done, repair.damaged.length);
    };
    if (isScoring) {
      const { device, threads } = settings;
      const { positions } = description;
      session = await openTeacherSession(teacher, {
        device,
        threads,
        positions,
        batchTokens: batchTokensOf(settings, repair),
      });
      await mendScales(repair, session, source);
    }
    count(0);
    for (const shard of repair.shards) {
      await mendShard(repair, session, source, shard);
      count(shard.groups.length);
    }
  } finally {
    await session?.close();
    await teacher?.close();
  }
}

function batchTokensOf({ batchTokens }: RepairSettings, { manifest }: CacheRepair): number {
  const known = manifest.provenance.find(({ settings }) => settings.batchTokens !== undefined)?.settings.batchTokens;
  return batchTokens ?? (typeof known === 'number' ? known : BUILD_SETTINGS.batchTokens.default);
}

async function mendTokenizer(repair: CacheRepair, openTokenizer: () => Promise<Tokenizer | null>): Promise<void> {
  if (repair.tokenizerFiles.length === 0) return;
  const files = await readTokenizerFiles((await openTokenizer())!);
  for (const name of repair.tokenizerFiles) {
    const file = files.find((one) => one.name === name);
    if (file === undefined) {
      throw new StillhouseError({
        code: 'TOKENIZER_MISMATCH',
        where: name,
        problem: 'the tokenizer has no such file',
        remedy: 'Give --tokenizer with the folder of the tokenizer as it was',
      });
    }
    await repair.restoreTokenizerFile(name, file.bytes);
  }
}

/** The rows of a shard, from the cache or, where they are damaged, from the data. */
type ReadShard = (shard: number) => Promise<readonly CachedRow[]>;

async function openRows(
  settings: RepairSettings,
  repair: CacheRepair,
  teacher: Teacher | null,
  openTokenizer: () => Promise<Tokenizer | null>,
): Promise<ReadShard> {
  const { manifest } = repair;
  const lost = repair.shards.filter(({ groups }) => groups.includes('rows')).map(({ index }) => index);
  const files = new Map<string, string>();
  for (const path of lost.length === 0 ? [] : (settings.data ?? [])) files.set((await hashFile(path)).sha256, path);
  const tokenizer = lost.length === 0 ? null : await openTokenizer();
  const sources = listData(manifest.description, manifest.rows.planned);
  const sourceOf = (shard: number): DataRange =>
    sources.findLast(({ firstRow }) => firstRow <= manifest.shards[shard]!.firstRow)!;
  // Before anything is computed: all the data that is needed must be there.
  for (const shard of lost) requireData(settings, sourceOf(shard), files);
  return async (index) => {
    const known = await repair.readRows(index);
    if (known !== undefined) return known;
    const source = sourceOf(index);
    const { firstRow, rowCount } = manifest.shards[index]!;
    const first = firstRow - source.firstRow;
    const options = {
      limit: source.limit ?? undefined,
      maxLength: manifest.description.maxLength ?? undefined,
    };
    const rows: CachedRow[] = [];
    const isWanted = (row: number) => row >= first && row < first + rowCount;
    for await (const row of encodeRows(options, files.get(source.data.sha256)!, { teacher, tokenizer }, isWanted))
      rows.push(row);
    return rows;
  };
}

function requireData(settings: RepairSettings, { data }: DataRange, files: ReadonlyMap<string, string>): void {
  if (files.has(data.sha256)) return;
  if (settings.data === undefined) {
    throw new StillhouseError({
      code: 'SETTING_MISSING',
      where: '--data',
      problem: `rows are damaged, and ${data.name} is needed to encode them again`,
      remedy: `Give --data ${data.name}`,
    });
  }
  throw new StillhouseError({
    code: 'DATA_MISMATCH',
    where: settings.data.join(', '),
    problem: `none of these is ${data.name} as it was when the rows were encoded`,
    expected: `sha256 ${data.sha256}`,
    got: [...files.keys()].join(', '),
  });
}

/** Scales are measured on the first shard. */
async function mendScales(repair: CacheRepair, session: TeacherSession, read: ReadShard): Promise<void> {
  if (repair.scales.length === 0) return;
  const { labels } = repair.manifest.description;
  const hidden = { ...labels.hidden!, layers: repair.scales as readonly HiddenLayer[] };
  await session.score(await read(0), { ...labels, hidden }, repair);
}

async function mendShard(
  repair: CacheRepair,
  session: TeacherSession | undefined,
  read: ReadShard,
  shard: DamagedShard,
): Promise<void> {
  const rows = await read(shard.index);
  const labels = repair.labelsOf(shard);
  const { positions } = repair.manifest.description;
  const labelled = needTeacher(labels) ? await session!.score(rows, labels, repair) : withoutLabels(rows, positions);
  await repair.restoreShard(shard, labelled);
}
