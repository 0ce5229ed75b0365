import type { HiddenScale } from '../codecs/hidden-scale.ts';
import type { OutputMatrixSource } from '../codecs/output-matrix.ts';
import type { CacheSize } from '../format/cache-size.ts';
import type { CacheDescription } from '../format/description.ts';
import type { HiddenLayer } from '../format/hidden-layer.ts';
import type { LabelledRow } from '../format/labelled-row.ts';
import type { ScoringSettings } from '../format/provenance.ts';

/**
 * Writes a cache, shard after shard; whatever it has finished survives a kill, and the same calls made again end in
 * the same bytes. Arrays handed in must not change before the promise settles. One call at a time, but for
 * `writeShard`.
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
   * Settles once the shard is on the disk and in the manifest. The next may be handed over before: it is encoded while
   * this one is synced, and stored after it. Where one fails those begun after it fail too; once all have settled the
   * first of them may be tried again.
   * @param settings what computed the labels and is not in the description, such as `device`; kept in the manifest
   * @throws StillhouseError CACHE_ROW_INVALID, CACHE_ROW_TOO_LARGE, CACHE_SHARD_UNEXPECTED, CACHE_LOCK_LOST, DISK_FULL
   */
  writeShard(index: number, rows: readonly LabelledRow[], settings?: ScoringSettings): Promise<void>;
  /** Marks the cache, or this part of it, complete. @throws StillhouseError CACHE_UNFINISHED */
  finish(): Promise<void>;
  /** Gives the folder back to other builders; what is finished stays. */
  close(): Promise<void>;
}
