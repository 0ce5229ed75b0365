import { StillhouseError } from '@stillhouse/errors';
import { decodeText } from '../codecs/arrow-decoding.ts';
import type { CacheManifest } from '../format/manifest.ts';
import type { ShardFileReader } from './shard-files.ts';

/** The ids of all rows, in order. @throws StillhouseError CACHE_FILE_UNREADABLE */
export async function readRowIds(
  shardFiles: ShardFileReader,
  { shards }: CacheManifest,
  where: string,
): Promise<readonly string[]> {
  const rowIds: string[] = [];
  for (const { files, rowCount } of shards) {
    await shardFiles.withFile(files.rows, 'rows', async (file) => {
      const found = file.batchStarts.at(-1);
      if (found !== rowCount) {
        throw new StillhouseError({
          code: 'CACHE_FILE_UNREADABLE',
          where: `${where}/${files.rows.path}`,
          problem: 'the file has another number of rows than the manifest says',
          expected: String(rowCount),
          got: String(found),
        });
      }
      for (let i = 0; i + 1 < file.batchStarts.length; i++) {
        const batch = await file.readBatch(i);
        try {
          for (let row = 0; row < batch.rowCount; row++) rowIds.push(decodeText(batch.columns[0]!, row)!);
        } catch (cause) {
          throw new StillhouseError({
            code: 'CACHE_FILE_UNREADABLE',
            where: `${where}/${files.rows.path}`,
            problem: `the row ids cannot be read (${(cause as Error).message})`,
            remedy: 'Run `stillhouse cache verify` on the cache',
            cause,
          });
        }
      }
    });
  }
  return rowIds;
}
