import { openScratch, openShardEncoder, type Scratch, type ShardCodecs } from '../codecs/arrow-encoding.ts';
import type { HiddenScale } from '../codecs/hidden-scale.ts';
import type { ZstdCodec } from '../codecs/zstd.ts';
import { type CacheDescription, hiddenGroup, type ShardContent, type ShardGroup } from '../format/description.ts';
import type { HiddenLayer } from '../format/hidden-layer.ts';
import type { LabelledRow } from '../format/labelled-row.ts';
import type { ListedFile } from '../format/manifest.ts';
import { type GroupFile, openGroupFile } from './group-file.ts';
import type { ShardTask } from './shard-tasks.ts';

/** What each group of a shard is written with. Shards are encoded one after the other, so a group has one scratch. */
export function openGroupCodecs(
  zstd: ZstdCodec,
  scales: ReadonlyMap<HiddenLayer, HiddenScale>,
): (content: ShardContent) => ShardCodecs {
  const scratches = new Map<ShardContent, Scratch>();
  return (content) => {
    const scratch = scratches.get(content) ?? openScratch();
    scratches.set(content, scratch);
    const isLayer = content !== 'rows' && content !== 'topk' && content !== 'sampled';
    return { zstd, scratch, scale: isLayer ? scales.get(content) : undefined };
  };
}

export type WrittenFiles = Readonly<Partial<Record<ShardGroup, ListedFile>>>;

/** The files of a shard while they are written together. One call at a time. */
export interface ShardFileSet {
  push(row: LabelledRow): Promise<void>;
  /** After the last row. */
  flush(): Promise<void>;
  /** All files are waited for, whichever fails. @returns those that were written, by group */
  commit(): Promise<WrittenFiles>;
  abort(): Promise<void>;
}

/** @throws StillhouseError CACHE_ROW_TOO_LARGE, DISK_FULL, NOT_WRITABLE, FILE_THREAD_ENDED (from any of its methods) */
export async function openShardFileSet(
  folder: string,
  { groups, pathOf }: ShardTask,
  description: CacheDescription,
  codecsOf: (content: ShardContent) => ShardCodecs,
): Promise<ShardFileSet> {
  const files: GroupFile[] = [];
  const abort = async () => {
    for (const file of files) await file.abort();
  };
  try {
    for (const group of groups) {
      const layer = description.labels.hidden?.layers.find((one) => hiddenGroup(one) === group);
      const content = layer ?? (group as 'rows' | 'topk' | 'sampled');
      const encoder = openShardEncoder(content, description, codecsOf(content));
      files.push(await openGroupFile(folder, pathOf(group), encoder));
    }
  } catch (error) {
    await abort();
    throw error;
  }
  return {
    push: async (row) => {
      for (const file of files) await file.push(row);
    },
    flush: async () => {
      for (const file of files) await file.flush();
    },
    commit: async () => {
      const committed = await Promise.allSettled(files.map((file) => file.commit()));
      const listed = committed.map((one, i) => {
        if (one.status === 'rejected') throw one.reason;
        return [groups[i]!, one.value] as const;
      });
      return Object.fromEntries(listed);
    },
    abort,
  };
}
