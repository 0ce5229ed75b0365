import type { ModelConfig } from '@stillhouse/checkpoint';
import { StillhouseError } from '@stillhouse/errors';
import { requireRowFits } from '@stillhouse/objectives';
import type { CachedRow, TeacherCache } from '@stillhouse/teacher-cache';

/** A row of a cache of which some positions are measured. */
export interface SampledRow {
  /** Index in the cache. */
  readonly index: number;
  readonly row: CachedRow;
  /** Target positions, ascending; of the last row of a sample perhaps only the first ones. */
  readonly positions: Int32Array;
}

/**
 * Rows from all over a cache until they hold so many target positions; the same for the same cache. Rows are visited in
 * steps of the golden ratio of their number, so any first few are spread evenly.
 * @param candidates indices of rows that may be taken; left out: all
 * @throws StillhouseError NO_EVALUATION_ROWS, ROW_TOO_LONG, VOCABULARY_MISMATCH
 */
export async function sampleRows(
  cache: TeacherCache,
  student: ModelConfig,
  options: { readonly vocabSize: number; readonly positionsLimit: number; readonly candidates?: readonly number[] },
): Promise<readonly SampledRow[]> {
  const candidates = options.candidates ?? [...cache.rowIds.keys()];
  const sample: SampledRow[] = [];
  let left = options.positionsLimit;
  for (const at of stepThrough(candidates.length)) {
    if (left === 0) break;
    const index = candidates[at]!;
    const { row } = await cache.readRow(index, { topk: false, sampled: false, hidden: [] });
    const targets = [...row.lossMask.keys()].filter((token) => row.lossMask[token] === 1).map((token) => token - 1);
    const positions = Int32Array.from(targets.slice(0, left));
    if (positions.length === 0) continue;
    const { maxPositions } = student;
    requireRowFits(row.inputIds, { maxPositions, vocabSize: options.vocabSize }, `${cache.folder}, row ${row.id}`);
    sample.push({ index, row, positions });
    left -= positions.length;
  }
  if (sample.length > 0) return sample;
  throw new StillhouseError({
    code: 'NO_EVALUATION_ROWS',
    where: cache.folder,
    problem: 'no row of the cache has target tokens',
    remedy: 'Choose another cache',
  });
}

/** 0 to count - 1, each once, far from those before. */
function* stepThrough(count: number): Generator<number> {
  const divisor = (a: number, b: number): number => (b === 0 ? a : divisor(b, a % b));
  let step = Math.max(1, Math.round(count * 0.618_033_988_75));
  while (divisor(count, step) !== 1) step += 1;
  for (let i = 0; i < count; i++) yield (i * step) % count;
}
