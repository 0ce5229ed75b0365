import { join } from 'node:path';
import { makeFolder, writeFileAtomically } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { loadBuildState, loadRowIds, refuseForeignFolder, refuseParts } from './build-state.ts';
import { lockForBuilding } from './builder-lock.ts';
import type { CacheSize } from './cache-size.ts';
import { type CacheDescription, type HiddenLayer, normaliseDescription } from './description.ts';
import type { HiddenScale } from './hidden-scale.ts';
import type { LabelledRow } from './labelled-row.ts';
import { MANIFEST_NAME, type ManifestBody, serialiseManifest } from './manifest.ts';
import type { OutputMatrixSource } from './output-matrix.ts';
import type { Partition } from './part-manifest.ts';
import { openPartWriter } from './part-writer.ts';
import type { ScoringSettings } from './provenance.ts';
import { listTasks, makeShardWriter } from './shard-writer.ts';

/**
 * Writes a cache, shard after shard; whatever it has finished survives a kill, and the same calls made again end in
 * the same bytes. Arrays handed in must not change before the promise settles. One call at a time.
 */
export interface CacheWriter {
  readonly description: CacheDescription;
  readonly totalRows: number;
  /** Shards of the whole cache. */
  readonly shardCount: number;
  /** The numbers of the shards that this writer writes, in order: all, or those of its partition. */
  readonly shards: readonly number[];
  /** So many of `shards` are finished; the next to write is `shards[completedShards]`. */
  readonly completedShards: number;
  /** Whether the cache was finished before or by `finish`. */
  readonly isComplete: boolean;
  /** Whether there is nothing to put: they are there, or another partition's to bring. */
  readonly hasTokenizerFiles: boolean;
  readonly hasOutputMatrix: boolean;
  /** What the finished files take; of a partition its own. */
  readonly size: CacheSize;
  /** The row numbers of a shard: [first, end). */
  shardRange(index: number): readonly [number, number];
  /** @throws StillhouseError CACHE_CONFIG_MISMATCH if other files were put before */
  putTokenizerFiles(files: readonly { readonly name: string; readonly bytes: Uint8Array }[]): Promise<void>;
  /** Does nothing if the matrix is there already. @throws StillhouseError CACHE_MATRIX_INVALID */
  putOutputMatrix(source: OutputMatrixSource): Promise<void>;
  /**
   * Fixes what a layer's states are decoded with, for all shards, before the first: for `int8` the RMS of each channel,
   * [hiddenSize], each > 0; for `coded` a codebook.
   */
  setScale(layer: HiddenLayer, scale: HiddenScale): Promise<void>;
  /** What was set, now or by the build that is resumed. */
  scale(layer: HiddenLayer): HiddenScale | undefined;
  /**
   * Takes over what other partitions have measured on the first shard and put in the same folder.
   * @returns whether all that must be measured there is fixed
   */
  adoptCalibration(): Promise<boolean>;
  /**
   * @param settings what computed the labels and is not in the description, such as `device`; kept in the manifest
   * @throws StillhouseError CACHE_ROW_INVALID, CACHE_ROW_TOO_LARGE, CACHE_SHARD_UNEXPECTED, CACHE_LOCK_LOST, DISK_FULL
   */
  writeShard(index: number, rows: readonly LabelledRow[], settings?: ScoringSettings): Promise<void>;
  /** Marks the cache, or this part of it, complete. @throws StillhouseError CACHE_UNFINISHED */
  finish(): Promise<void>;
  /** Gives the folder back to other builders; what is finished stays. */
  close(): Promise<void>;
}

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
