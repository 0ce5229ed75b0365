import { readFile, rm, stat } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { makeFolder, writeFileAtomically } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import {
  type CacheDescription,
  diffDescriptions,
  normaliseDescription,
  type ShardGroup,
} from '../format/description.ts';
import type { CachedRow } from '../format/labelled-row.ts';
import {
  type CacheManifest,
  listFiles,
  MANIFEST_NAME,
  type ManifestBody,
  sealBody,
  serialiseManifest,
} from '../format/manifest.ts';
import { openSealed, readBody, readManifest } from '../format/manifest-parser.ts';
import { findShardIndex } from '../format/shard-layout.ts';
import { openCache, type TeacherCache } from '../read/cache-reader.ts';
import { requireAllGroups } from '../read/pulled-state.ts';
import { bringFile } from './bring-file.ts';
import { refuseForeignFolder, removeLeftovers, requireSameDescription } from './build-state.ts';
import { lockForBuilding } from './builder-lock.ts';
import type { CacheWriter } from './cache-writer.ts';
import { type ExtensionPlan, planExtension, requireExtension } from './extension-plan.ts';
import { restrictLabels } from './shard-tasks.ts';
import { makeShardWriter } from './shard-writer.ts';

/** What an extension has finished; in the folder of the cache that is to come. */
export const EXTENSION_NAME = 'extend.json';
const EXTENSION_FORMAT = 'stillhouse-teacher-cache-extension';

export interface ExtensionRequest {
  /** Folder of the cache that is extended. */
  readonly cache: string;
  /** Folder for the extended cache, with links to the files that stay; the same folder extends in place. */
  readonly out: string;
  /**
   * The extended cache: as it is, with more labels, `furtherData`, and a teacher or output matrix where it had none.
   */
  readonly description: CacheDescription;
  /** Its rows, the added ones included. */
  readonly totalRows: number;
  /** The program that computes what is added. */
  readonly generator: CacheDescription['generator'];
}

/** The work of extending a cache. */
export interface CacheExtension {
  /** Writes what is new: its `shards` are those that get something, the cache's own before new ones. */
  readonly writer: CacheWriter;
  /** The labels that a shard gets; a shard of the cache as it was keeps the others. */
  labelsOf(shard: number): CacheDescription['labels'];
  /** The rows of a shard that the cache has; undefined for a new one. */
  readFormerRows(shard: number): Promise<readonly CachedRow[] | undefined>;
  close(): Promise<void>;
}

/**
 * Extends a cache, or goes on with an extension of the same kind. Files that stay keep their bytes; larger top-k labels
 * get names of their own in place, so that the cache as it was stays valid until its manifest is replaced. Only then
 * the files that nothing needs any more are removed.
 * @throws StillhouseError CACHE_EXTENSION_IMPOSSIBLE, CACHE_EXTENSION_UNFINISHED, CACHE_INCOMPLETE, CACHE_IN_USE,
 *   CACHE_FOLDER_NOT_EMPTY, CACHE_CONFIG_MISMATCH, CACHE_GROUP_ABSENT, and those of `openCache`
 */
export async function openCacheExtension(request: ExtensionRequest): Promise<CacheExtension> {
  const { out, generator, totalRows } = request;
  const description = normaliseDescription(request.description);
  const isInPlace = resolve(request.cache) === resolve(out);
  if (!isInPlace && !(await exists(join(out, EXTENSION_NAME)))) await refuseForeignFolder(out);
  // Before there is a lock: what is no cache gets none.
  await requireAllGroups(request.cache, await readManifest(request.cache));
  const lock = await openLock(out);
  let former: TeacherCache | undefined;
  try {
    const base = await openCache(request.cache, { groups: ['rows'] });
    former = base;
    requireExtension(base.manifest, description, totalRows);
    const plan = planExtension(base, description, totalRows, isInPlace);
    const seal = (done: ManifestBody): ManifestBody => ({
      ...done,
      complete: true,
      rows: { planned: totalRows, stored: totalRows },
      shards: [...plan.untouched, ...done.shards],
    });
    const state = await loadState({ cache: request.cache, out, isInPlace }, base.manifest, plan, {
      description,
      totalRows,
    });
    const writer = await makeShardWriter(
      {
        folder: out,
        lock,
        generator,
        shardCount: plan.all.length,
        rangeOf: (index) => plan.all[index] ?? { firstRow: totalRows, rowCount: 0 },
        tasks: plan.tasks,
        takenIds: base.rowIds,
        bringsFixedFiles: true,
        sharesScales: false,
        persist: (next) => writeState(out, base.digest, next),
        publish: async (done) => {
          await writeFileAtomically(join(out, MANIFEST_NAME), serialiseManifest(seal(done)));
          await finishFolder(out, seal(done));
        },
      },
      state,
    );
    const groupsOf = new Map(plan.tasks.map(({ index, groups }) => [index, groups]));
    return {
      writer,
      labelsOf: (shard) => restrictLabels(description, groupsOf.get(shard) ?? []).labels,
      readFormerRows: (shard) => readRows(base, shard),
      close: async () => {
        await base.close();
        await writer.close();
      },
    };
  } catch (error) {
    await former?.close();
    await lock.release();
    throw error;
  }
}

async function openLock(folder: string) {
  await makeFolder(folder);
  return lockForBuilding(folder);
}

const exists = (path: string) =>
  stat(path).then(
    () => true,
    () => false,
  );

async function readRows(cache: TeacherCache, shard: number): Promise<readonly CachedRow[] | undefined> {
  const range = cache.manifest.shards[shard];
  if (range === undefined) return undefined;
  const numbers = Array.from({ length: range.rowCount }, (_, i) => range.firstRow + i);
  const rows: CachedRow[] = [];
  for await (const { row } of cache.rows(numbers, { topk: false, hidden: [] })) rows.push(row);
  return rows;
}

interface ExtensionFolders {
  readonly cache: string;
  readonly out: string;
  /** Whether they are the same. */
  readonly isInPlace: boolean;
}

/** The state to go on from; everything that stays is in `out` when this settles. */
async function loadState(
  { cache, out, isInPlace }: ExtensionFolders,
  base: CacheManifest,
  plan: ExtensionPlan,
  { description, totalRows }: Pick<ExtensionRequest, 'description' | 'totalRows'>,
): Promise<ManifestBody> {
  const asked = { description, rows: { planned: totalRows } };
  const finished = isInPlace ? base : (await exists(join(out, MANIFEST_NAME))) ? await readManifest(out) : undefined;
  const begun = await readState(out);
  if (begun !== undefined && finished !== undefined && begun.base !== finished.digest) {
    // Killed when the manifest was replaced already: what is left is to tidy up.
    await finishFolder(out, finished);
  } else if (begun !== undefined) {
    requireSameExtension(out, begun.state, asked);
    await removeLeftovers(out, base, begun.state);
    if (!isInPlace) await bringFiles(cache, out, base, plan);
    return begun.state;
  }
  if (finished !== undefined && (!isInPlace || isSame(finished, asked))) {
    requireSameDescription(out, finished, asked);
    return finished;
  }
  const state: ManifestBody = {
    complete: false,
    rows: { planned: totalRows, stored: 0 },
    description,
    tokenizer: base.tokenizer,
    outputMatrix: base.outputMatrix,
    scales: base.scales,
    shards: [],
    provenance: base.provenance.filter(({ group }) => !plan.groups.includes(group)),
  };
  if (isInPlace) await removeLeftovers(out, base);
  await writeState(out, base.digest, state);
  if (!isInPlace) await bringFiles(cache, out, base, plan);
  return state;
}

async function bringFiles(from: string, to: string, base: CacheManifest, { groups }: ExtensionPlan): Promise<void> {
  for (const { group, file } of listFiles(base)) {
    if (!groups.includes(group as ShardGroup)) await bringFile(from, to, file);
  }
}

/** What nothing needs any more goes: files that were replaced, and the state last. */
async function finishFolder(folder: string, manifest: ManifestBody): Promise<void> {
  await removeLeftovers(folder, manifest);
  await rm(join(folder, EXTENSION_NAME), { force: true });
}

async function writeState(folder: string, base: string, state: ManifestBody): Promise<void> {
  await writeFileAtomically(join(folder, EXTENSION_NAME), sealBody(EXTENSION_FORMAT, { base }, state));
}

async function readState(folder: string): Promise<{ readonly base: string; readonly state: ManifestBody } | undefined> {
  const path = join(folder, EXTENSION_NAME);
  if (!(await exists(path))) return undefined;
  const sealed = openSealed(await readFile(path, 'utf8'), path, EXTENSION_FORMAT);
  const state = readBody(sealed, path, (_, firstRow, description, planned) =>
    findShardIndex(description, planned, firstRow),
  );
  return { base: sealed.reader.text(sealed.root.base, 'base'), state };
}

type Described = Pick<ManifestBody, 'description'> & { readonly rows: { readonly planned: number } };

const listDifferences = (have: Described, asked: Described) =>
  diffDescriptions(
    { ...have.description, totalRows: have.rows.planned },
    { ...asked.description, totalRows: asked.rows.planned },
  );

const isSame = (have: Described, asked: Described) => listDifferences(have, asked).length === 0;

function requireSameExtension(folder: string, have: Described, asked: Described): void {
  const differences = listDifferences(have, asked);
  if (differences.length === 0) return;
  throw new StillhouseError({
    code: 'CACHE_EXTENSION_UNFINISHED',
    where: folder,
    problem: 'another extension was begun there and is not finished',
    expected: differences.map(({ key, have }) => `${key} ${have}`).join(', '),
    got: differences.map(({ key, asked }) => `${key} ${asked}`).join(', '),
    remedy: `Run the command that began it, or delete ${join(folder, EXTENSION_NAME)} to give it up`,
  });
}
