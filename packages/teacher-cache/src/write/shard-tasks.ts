import { type CacheDescription, hiddenGroup, type ShardGroup, shardGroups } from '../format/description.ts';
import { type ListedShard, shardPath } from '../format/manifest.ts';
import { layOutShards, type RowRange } from '../format/shard-layout.ts';

/** A shard to write, whole or some groups of it. */
export interface ShardTask extends RowRange {
  readonly index: number;
  /** The groups that are written. */
  readonly groups: readonly ShardGroup[];
  pathOf(group: ShardGroup): string;
  /** The shard as it is, where only some groups are written, with the ids of its rows. */
  readonly former?: ListedShard;
  readonly formerIds?: readonly string[];
}

/** The shards of a whole cache as tasks. */
export function listTasks(description: CacheDescription, totalRows: number): readonly ShardTask[] {
  const groups = shardGroups(description);
  return Array.from(layOutShards(description, totalRows), (range, index) => ({
    ...range,
    index,
    groups,
    pathOf: (group) => shardPath(index, group),
  }));
}

/** The description of a cache that has only these groups of labels. */
export function restrictLabels(description: CacheDescription, groups: readonly ShardGroup[]): CacheDescription {
  const { topk, sampled = null, hidden, head } = description.labels;
  const layers = hidden?.layers.filter((layer) => groups.includes(hiddenGroup(layer))) ?? [];
  return {
    ...description,
    labels: {
      ...description.labels,
      topk: groups.includes('topk') ? topk : null,
      ...(sampled === null ? {} : { sampled: groups.includes('sampled') ? sampled : null }),
      hidden: hidden === null || layers.length === 0 ? null : { ...hidden, layers },
      head,
    },
  };
}
