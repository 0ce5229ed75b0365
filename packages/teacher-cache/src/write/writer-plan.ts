import type { FolderLock } from '@stillhouse/durable-files';
import type { CacheDescription } from '../format/description.ts';
import type { ManifestBody } from '../format/manifest.ts';
import type { RowRange } from '../format/shard-layout.ts';
import type { ShardTask } from './shard-tasks.ts';

/** What a writer needs to know of the build it does: a whole cache, a part of one, or more for one. */
export interface WriterPlan {
  readonly folder: string;
  readonly lock: FolderLock;
  /** The program that computes the labels. */
  readonly generator: CacheDescription['generator'];
  readonly shardCount: number;
  rangeOf(index: number): RowRange;
  readonly tasks: readonly ShardTask[];
  /** The ids of rows that are in the cache and not in finished tasks. */
  readonly takenIds: Iterable<string>;
  /** False where another builder brings tokenizer and output matrix. */
  readonly bringsFixedFiles: boolean;
  /** Whether other builders fix scales in the same folder at the same time. */
  readonly sharesScales: boolean;
  /** Writes the state down so that a later run goes on there. */
  persist(state: ManifestBody): Promise<void>;
  /** Called once, with everything written. */
  publish(state: ManifestBody): Promise<void>;
}
