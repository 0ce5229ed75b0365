import type { ModelConfig } from '@stillhouse/checkpoint';
import { StillhouseError } from '@stillhouse/errors';
import { countTargets } from '@stillhouse/objectives';
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
    const where = `${cache.folder}, row ${row.id}`;
    const length = row.inputIds.length;
    if (length > config.maxPositions) {
      throw new StillhouseError({
        code: 'ROW_TOO_LONG',
        where,
        problem: "the row is longer than the model's context",
        expected: `at most ${config.maxPositions} tokens`,
        got: String(length),
        remedy: 'Build the cache with a smaller --max-length',
      });
    }
    const largest = row.inputIds.reduce((most, id) => Math.max(most, id), 0);
    if (largest >= vocabSize) {
      throw new StillhouseError({
        code: 'VOCABULARY_MISMATCH',
        where,
        problem: 'the row has an id that the model does not know',
        expected: `ids below ${vocabSize}`,
        got: String(largest),
        remedy: 'Evaluate a model with the same tokenizer as the cache',
      });
    }
    rows.push({ index, length });
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
