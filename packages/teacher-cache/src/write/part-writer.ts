import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { makeFolder } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import type { CacheDescription } from '../format/description.ts';
import { listFiles } from '../format/manifest.ts';
import { readManifestIfThere } from '../format/manifest-parser.ts';
import { loadRowIds, PARTS_FOLDER, requireFiles, requireSameDescription } from './build-state.ts';
import { LOCK_NAME, lockForBuilding } from './builder-lock.ts';
import type { CacheWriter } from './cache-writer.ts';
import {
  agreeOnPlan,
  emptyBody,
  isInPartition,
  type Partition,
  partLockName,
  readPart,
  requirePartition,
  writePart,
} from './part-manifest.ts';
import { listTasks, type ShardTask } from './shard-tasks.ts';
import { makeShardWriter } from './shard-writer.ts';

/**
 * A writer for the shards of one part. Parts share the folder and nothing else: each has its lock and its manifest
 * under `parts`. What is measured on the first shard is written by whoever comes first; the first part brings tokenizer
 * and output matrix.
 */
export async function openPartWriter(
  folder: string,
  description: CacheDescription,
  totalRows: number,
  partition: Partition,
): Promise<CacheWriter> {
  requirePartition(partition, folder);
  const merged = await readManifestIfThere(folder);
  // A part that is run again after the merge has nothing to do; its lock would bring `parts` back.
  if (merged?.complete !== true) await makeFolder(join(folder, PARTS_FOLDER));
  const lock = merged?.complete === true ? NO_LOCK : await lockForBuilding(folder, partLockName(partition));
  try {
    const all = listTasks(description, totalRows);
    const common = {
      folder,
      lock,
      generator: description.generator,
      shardCount: all.length,
      rangeOf: (index: number) => all[index] ?? { firstRow: totalRows, rowCount: 0 },
      tasks: all.filter(({ index }) => isInPartition(index, partition)),
      bringsFixedFiles: partition.index === 1,
      sharesScales: true,
    };
    if (merged !== undefined) {
      requireSameDescription(folder, merged, { description, rows: { planned: totalRows } });
      if (!merged.complete) refuseWholeBuild(folder);
      const nothing = async () => {};
      return await makeShardWriter({ ...common, takenIds: [], persist: nothing, publish: nothing }, merged);
    }
    await agreeOnPlan(folder, description, totalRows, partition);
    const known = await readPart(folder, partition);
    if (known === undefined) await refuseOtherBuilder(folder);
    const state = known ?? emptyBody(description, totalRows);
    requireSameDescription(folder, state, { description, rows: { planned: totalRows } });
    await requireFiles(folder, state);
    await removeOwnLeftovers(folder, common.tasks, new Set([...listFiles(state)].map(({ file }) => file.path)));
    const persist = (next: typeof state) => writePart(folder, partition, next);
    if (known === undefined) await persist(state);
    return await makeShardWriter(
      { ...common, takenIds: await loadRowIds(folder, state), persist, publish: persist },
      state,
    );
  } catch (error) {
    await lock.release();
    throw error;
  }
}

const NO_LOCK = { requireHeld: async () => {}, release: async () => {} };

function refuseWholeBuild(folder: string): never {
  throw new StillhouseError({
    code: 'CACHE_IN_USE',
    where: folder,
    problem: 'a cache was begun there as a whole, without --partition',
    remedy: 'Finish it with the same command, or choose another folder',
  });
}

/** Whoever begins a whole cache takes the lock first and then looks for parts: one of the two sees the other. */
async function refuseOtherBuilder(folder: string): Promise<void> {
  const names = await readdir(folder);
  if (!names.includes(LOCK_NAME)) return;
  const lock = await lockForBuilding(folder);
  await lock.release();
}

/** What a kill kept out of the manifest of this part; files of other parts are left alone. */
async function removeOwnLeftovers(
  folder: string,
  tasks: readonly ShardTask[],
  listed: ReadonlySet<string>,
): Promise<void> {
  const own = new Set(tasks.map(({ index }) => index));
  for (const name of await readdir(join(folder, 'shards')).catch(() => [])) {
    const index = Number(/^\d+/.exec(name)?.[0] ?? Number.NaN);
    if (own.has(index) && !listed.has(`shards/${name}`)) await rm(join(folder, 'shards', name), { force: true });
  }
}
