import { join } from 'node:path';
import { makeFolder, writeFileAtomically } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { type CacheDescription, normaliseDescription } from '../format/description.ts';
import { MANIFEST_NAME, type ManifestBody, serialiseManifest } from '../format/manifest.ts';
import { loadBuildState, loadRowIds, refuseForeignFolder, refuseParts } from './build-state.ts';
import { lockForBuilding } from './builder-lock.ts';
import type { CacheWriter } from './cache-writer.ts';
import type { Partition } from './part-manifest.ts';
import { openPartWriter } from './part-writer.ts';
import { listTasks } from './shard-tasks.ts';
import { makeShardWriter } from './shard-writer.ts';

export interface WriterOptions {
  /** How many rows the cache will have. */
  readonly totalRows: number;
  /** Only the shards of this part are written, while others may write theirs; `mergeCache` joins them. */
  readonly partition?: Partition;
}

/**
 * Starts a cache in `folder`, or resumes the one that is there if it has the same description.
 * @throws StillhouseError CACHE_CONFIG_MISMATCH, CACHE_IN_USE, CACHE_FOLDER_NOT_EMPTY, CACHE_DESCRIPTION_INVALID,
 *   CACHE_BUILT_IN_PARTS, CACHE_PARTITION_INVALID
 */
export async function openCacheWriter(
  folder: string,
  description: CacheDescription,
  { totalRows, partition }: WriterOptions,
): Promise<CacheWriter> {
  const asked = normaliseDescription(description);
  if (!Number.isSafeInteger(totalRows) || totalRows < 1) {
    throw new StillhouseError({
      code: 'CACHE_DESCRIPTION_INVALID',
      where: folder,
      problem: 'a cache needs rows',
      expected: 'at least 1',
      got: String(totalRows),
    });
  }
  const isPart = partition !== undefined && partition.count > 1;
  await refuseForeignFolder(folder, { mayHaveParts: isPart });
  await makeFolder(folder);
  return isPart ? openPartWriter(folder, asked, totalRows, partition) : openWholeWriter(folder, asked, totalRows);
}

async function openWholeWriter(folder: string, description: CacheDescription, totalRows: number): Promise<CacheWriter> {
  const lock = await lockForBuilding(folder);
  try {
    await refuseParts(folder);
    const state = await loadBuildState(folder, description, totalRows);
    const persist = async (next: ManifestBody) => {
      await writeFileAtomically(join(folder, MANIFEST_NAME), serialiseManifest(next));
    };
    const tasks = listTasks(description, totalRows);
    const plan = {
      folder,
      lock,
      generator: description.generator,
      shardCount: tasks.length,
      rangeOf: (index: number) => tasks[index] ?? { firstRow: totalRows, rowCount: 0 },
      tasks,
      takenIds: await loadRowIds(folder, state),
      bringsFixedFiles: true,
      sharesScales: false,
      persist,
      publish: persist,
    };
    return await makeShardWriter(plan, state);
  } catch (error) {
    await lock.release();
    throw error;
  }
}
