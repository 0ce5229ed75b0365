import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { makeFolder, writeFileAtomically } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { scaledLayers } from '../codecs/hidden-scale.ts';
import {
  type CacheManifest,
  listFiles,
  MANIFEST_NAME,
  type ManifestBody,
  serialiseManifest,
} from '../format/manifest.ts';
import { readManifest, readManifestIfThere } from '../format/manifest-parser.ts';
import { layOutShards } from '../format/shard-layout.ts';
import { bringFile } from './bring-file.ts';
import {
  loadRowIds,
  PARTS_FOLDER,
  refuseForeignFolder,
  removeLeftovers,
  requireFiles,
  requireSameDescription,
} from './build-state.ts';
import { lockForBuilding } from './builder-lock.ts';
import { listParts, type Partition, type PartManifest, printPartition, readPart, readPlan } from './part-manifest.ts';

/** A part that is not finished. */
export interface UnfinishedPart {
  readonly partition: Partition;
  readonly shardsDone: number;
  readonly shards: number;
}

export interface MergeResult {
  readonly manifest: CacheManifest;
  /** The cache was merged before; nothing was done. */
  readonly wasMerged: boolean;
  readonly parts: number;
}

interface FoundPart {
  readonly folder: string;
  readonly part: PartManifest;
}

/**
 * Joins the parts of a cache into one, in `folder`: those that were built there and those in other folders, whose
 * files are linked or copied. The result is the same, byte for byte, as if one builder had made it. Called again it
 * finishes what a killed merge began, or does nothing.
 * @throws StillhouseError CACHE_PARTS_MISSING, CACHE_PARTS_DISAGREE, CACHE_CONFIG_MISMATCH, CACHE_NOT_FOUND,
 *   CACHE_IN_USE, CACHE_ROW_INVALID, CACHE_FILE_MISSING, CACHE_FILE_DAMAGED, CACHE_FOLDER_NOT_EMPTY
 */
export async function mergeCache(folder: string, others: readonly string[] = []): Promise<MergeResult> {
  await refuseForeignFolder(folder, { mayHaveParts: true });
  const folders = [...new Set([folder, ...others])];
  const plan = await agreeAcross(folders);
  if (plan === undefined) return requireMerged(folder, others);
  await makeFolder(folder);
  const lock = await lockForBuilding(folder);
  try {
    const merged = await readIfComplete(folder);
    if (merged !== undefined) requireSameDescription(folder, merged, plan.body);
    const found = merged === undefined ? await collectParts(folders, plan.count) : [];
    if (merged === undefined) {
      const body = joinParts(found, plan.body);
      for (const { folder: from, part } of found) {
        if (from === folder) await requireFiles(folder, part);
        else for (const { file } of listFiles(part)) await bringFile(from, folder, file);
      }
      await requireDistinctRows(folder, found);
      await lock.requireHeld();
      await writeFileAtomically(join(folder, MANIFEST_NAME), serialiseManifest(body));
    }
    const manifest = merged ?? (await readManifest(folder));
    await removeLeftovers(folder, manifest);
    await rm(join(folder, PARTS_FOLDER), { recursive: true, force: true });
    return { manifest, wasMerged: merged !== undefined, parts: plan.count };
  } finally {
    await lock.release();
  }
}

/** The parts of a cache in `folder` that are not finished; none of a cache that is merged, or was never in parts. */
export async function listUnfinishedParts(folder: string): Promise<readonly UnfinishedPart[]> {
  const plan = await readPlan(folder);
  if (plan === undefined) return [];
  const unfinished: UnfinishedPart[] = [];
  for (let index = 1; index <= plan.count; index++) {
    const partition = { index, count: plan.count };
    const part = await readPart(folder, partition);
    if (part?.complete !== true) unfinished.push(describePart(partition, part, plan.body));
  }
  return unfinished;
}

function describePart(partition: Partition, part: PartManifest | undefined, body: ManifestBody): UnfinishedPart {
  let shards = 0;
  for (const _ of layOutShards(body.description, body.rows.planned)) shards++;
  const { index, count } = partition;
  return { partition, shardsDone: part?.shards.length ?? 0, shards: Math.ceil((shards - index + 1) / count) };
}

interface AgreedPlan {
  readonly count: number;
  readonly body: ManifestBody;
}

/** The plan that all folders with parts have; undefined if none has one. */
async function agreeAcross(folders: readonly string[]): Promise<AgreedPlan | undefined> {
  let first: (AgreedPlan & { readonly folder: string }) | undefined;
  for (const folder of folders) {
    const plan = await readPlan(folder);
    if (plan === undefined) {
      if (folder !== folders[0]) refuseWithoutParts(folder);
      continue;
    }
    first ??= { ...plan, folder };
    if (plan.count !== first.count) {
      refuseDisagreement(
        folder,
        'its parts are of another number',
        `${first.count}, as in ${first.folder}`,
        plan.count,
      );
    }
    requireSameDescription(folder, plan.body, first.body);
  }
  return first;
}

function refuseWithoutParts(folder: string): never {
  throw new StillhouseError({
    code: 'CACHE_NOT_FOUND',
    where: folder,
    problem: 'there are no parts of a cache',
    expected: `a folder in which \`stillhouse cache build --partition i/n\` has built`,
  });
}

function refuseDisagreement(where: string, problem: string, expected: unknown, got: unknown): never {
  throw new StillhouseError({
    code: 'CACHE_PARTS_DISAGREE',
    where,
    problem,
    expected: String(expected),
    got: String(got),
    remedy: 'Build the part that is wrong again, in a folder with the `scales` of the others',
  });
}

/** Without parts anywhere: a complete cache was merged before. */
async function requireMerged(folder: string, others: readonly string[]): Promise<MergeResult> {
  if (others.length > 0) refuseWithoutParts(others[0]!);
  const manifest = await readManifest(folder);
  if (manifest.complete) return { manifest, wasMerged: true, parts: 0 };
  throw new StillhouseError({
    code: 'CACHE_INCOMPLETE',
    where: folder,
    problem: `only ${manifest.rows.stored} of ${manifest.rows.planned} rows are there, and no parts to merge`,
    remedy: 'Run the same `stillhouse cache build` command again, it goes on where it stopped',
  });
}

async function readIfComplete(folder: string): Promise<CacheManifest | undefined> {
  const manifest = await readManifestIfThere(folder);
  if (manifest === undefined || manifest.complete) return manifest;
  throw new StillhouseError({
    code: 'CACHE_CONFIG_MISMATCH',
    where: folder,
    problem: 'there is a cache that was begun as a whole, not in parts',
    remedy: 'Merge into another folder',
  });
}

async function collectParts(folders: readonly string[], count: number): Promise<readonly FoundPart[]> {
  const found = new Map<number, FoundPart>();
  const seen: UnfinishedPart[] = [];
  for (const folder of folders) {
    for (const partition of await listParts(folder)) {
      const part = await readPart(folder, partition);
      if (part === undefined) continue;
      if (partition.count !== count)
        refuseDisagreement(folder, 'a part is one of another number', count, partition.count);
      if (!part.complete) {
        seen.push(describePart(partition, part, part));
        continue;
      }
      const former = found.get(partition.index);
      if (former !== undefined && former.part.digest !== part.digest) {
        const name = `part ${printPartition(partition)}`;
        refuseDisagreement(
          folder,
          `${name} is in ${former.folder} too, with other content`,
          former.part.digest,
          part.digest,
        );
      }
      if (former === undefined) found.set(partition.index, { folder, part });
    }
  }
  const missing = Array.from({ length: count }, (_, i) => i + 1).filter((index) => !found.has(index));
  if (missing.length > 0) refuseMissing(folders, count, missing, seen);
  return [...found.values()].sort((a, b) => a.part.partition.index - b.part.partition.index);
}

function refuseMissing(
  folders: readonly string[],
  count: number,
  missing: readonly number[],
  seen: readonly UnfinishedPart[],
): never {
  const describe = (index: number) => {
    const begun = seen.find(({ partition }) => partition.index === index);
    const state = begun === undefined ? 'not begun' : `${begun.shardsDone} of ${begun.shards} shards`;
    return `${printPartition({ index, count })} (${state})`;
  };
  throw new StillhouseError({
    code: 'CACHE_PARTS_MISSING',
    where: folders.join(', '),
    problem: `${missing.length} of ${count} parts are not finished: ${missing.map(describe).join(', ')}`,
    remedy: 'Run `stillhouse cache build` again with the same settings and --partition for each of these',
  });
}

/** One body of all parts. */
function joinParts(found: readonly FoundPart[], plan: ManifestBody): ManifestBody {
  const { description, rows } = plan;
  const [first] = found;
  for (const { folder, part } of found) {
    requireSameDescription(folder, part, plan);
    // A part without shards has measured nothing.
    if (part.shards.length === 0) continue;
    for (const layer of scaledLayers(description)) {
      const [wanted, got] = [first!.part, part].map((one) => one.scales.find((scale) => scale.layer === layer)?.sha256);
      if (wanted === got) continue;
      const name = `part ${printPartition(part.partition)}`;
      refuseDisagreement(folder, `${name} was scaled by other numbers of layer ${layer}`, wanted, got);
    }
  }
  const parts = found.map(({ part }) => part);
  return {
    complete: true,
    rows: { planned: rows.planned, stored: parts.reduce((sum, part) => sum + part.rows.stored, 0) },
    description,
    tokenizer: first!.part.tokenizer,
    outputMatrix: first!.part.outputMatrix,
    scales: first!.part.scales,
    shards: parts.flatMap(({ shards }) => shards),
    provenance: parts.flatMap(({ provenance }) => provenance),
  };
}

async function requireDistinctRows(folder: string, found: readonly FoundPart[]): Promise<void> {
  const owners = new Map<string, Partition>();
  for (const { part } of found) {
    for (const id of await loadRowIds(folder, part)) {
      const owner = owners.get(id);
      if (owner !== undefined) {
        throw new StillhouseError({
          code: 'CACHE_ROW_INVALID',
          where: `row ${JSON.stringify(id)}`,
          problem: `it is in part ${printPartition(owner)} and in part ${printPartition(part.partition)}`,
        });
      }
      owners.set(id, part.partition);
    }
  }
}
