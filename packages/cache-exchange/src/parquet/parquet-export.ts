import type { TeacherCache } from '@stillhouse/teacher-cache';
import { labelMetadata, listCacheColumns, type ParquetLayout, toCacheRow } from '../export/cache-columns.ts';
import { type ExportResult, shardParts, writeExport } from '../export/export-folder.ts';

export interface ParquetExportOptions {
  /** Lists (default), or arrays as bytes in the oldest form of Parquet, which every reader knows. */
  readonly layout?: ParquetLayout;
}

/**
 * Writes a cache as Parquet for others to read: one file a shard (`00000.parquet` and so on), one row a sequence,
 * columns as FORMATS.md lists them, the groups that the cache was opened with. All files appear at once, or none.
 * @throws StillhouseError EXPORT_FOLDER_NOT_EMPTY, EXPORT_ROW_TOO_LARGE, DISK_FULL, NOT_WRITABLE; what reading throws
 */
export async function exportParquet(
  cache: TeacherCache,
  outDir: string,
  { layout = 'nested' }: ParquetExportOptions = {},
): Promise<ExportResult> {
  return writeExport({
    cache,
    outDir,
    parts: shardParts(cache, (index) => `${String(index).padStart(5, '0')}.parquet`),
    select: cache.openLabels,
    columns: await listCacheColumns(cache, layout),
    metadata: { ...labelMetadata(cache), 'stillhouse.layout': layout },
    pageVersion: layout === 'nested' ? 2 : 1,
    convert: toCacheRow,
  });
}
