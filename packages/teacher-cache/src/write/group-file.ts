import { join } from 'node:path';
import type { ShardEncoder } from '../codecs/arrow-encoding.ts';
import { openArrowFileWriter } from '../codecs/arrow-file-writer.ts';
import type { LabelledRow } from '../format/labelled-row.ts';
import type { ListedFile } from '../format/manifest.ts';

/** The file of one group of a shard while it is written, row by row. One call at a time. */
export interface GroupFile {
  push(row: LabelledRow): Promise<void>;
  /** After the last row. */
  flush(): Promise<void>;
  commit(): Promise<ListedFile>;
  abort(): Promise<void>;
}

/** @throws StillhouseError CACHE_ROW_TOO_LARGE, DISK_FULL, NOT_WRITABLE, FILE_THREAD_ENDED (from any of its methods) */
export async function openGroupFile(folder: string, path: string, encoder: ShardEncoder): Promise<GroupFile> {
  const file = await openArrowFileWriter(join(folder, path));
  const write = async (batch: ReturnType<typeof encoder.flush>) => {
    if (batch !== undefined) await file.write(batch);
  };
  return {
    push: (row) => write(encoder.push(row)),
    flush: () => write(encoder.flush()),
    commit: async () => {
      const { sizeBytes, sha256 } = await file.commit();
      return { path, sizeBytes, sha256 };
    },
    abort: () => file.abort(),
  };
}
