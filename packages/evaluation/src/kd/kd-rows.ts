import type { ModelConfig } from '@stillhouse/checkpoint';
import { StillhouseError } from '@stillhouse/errors';
import { countTargets, requireRowFits } from '@stillhouse/objectives';
import type { TeacherCache } from '@stillhouse/teacher-cache';

/** A row of a cache to evaluate. */
export interface KdRow {
  /** Index in the cache. */
  readonly index: number;
  /** Tokens. */
  readonly length: number;
}

/**
 * The rows of a split (or all), at most `limit`, that have target tokens; none is cut.
 * @param vocabSize ids from here on take no part
 * @throws StillhouseError NO_EVALUATION_ROWS, ROW_TOO_LONG, VOCABULARY_MISMATCH
 */
export async function selectKdRows(
  cache: TeacherCache,
  config: ModelConfig,
  vocabSize: number,
  { split, limit }: { readonly split: string | undefined; readonly limit: number | undefined },
): Promise<readonly KdRow[]> {
  const rows: KdRow[] = [];
  let index = -1;
  for await (const { row } of cache.rows(undefined, { topk: false, hidden: [] })) {
    index += 1;
    if (split !== undefined && row.split !== split) continue;
    if (countTargets(row.lossMask) === 0) continue;
    requireRowFits(row.inputIds, { maxPositions: config.maxPositions, vocabSize }, `${cache.folder}, row ${row.id}`);
    rows.push({ index, length: row.inputIds.length });
    if (rows.length === limit) break;
  }
  if (rows.length > 0) return rows;
  throw new StillhouseError({
    code: 'NO_EVALUATION_ROWS',
    where: cache.folder,
    problem:
      split === undefined ? 'no row of the cache has target tokens' : `no row of split ${split} has target tokens`,
    remedy: 'Choose another cache or another --split',
  });
}
