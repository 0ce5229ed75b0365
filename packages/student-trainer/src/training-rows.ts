import type { ModelConfig } from '@stillhouse/checkpoint';
import { StillhouseError } from '@stillhouse/errors';
import type { TeacherCache } from '@stillhouse/teacher-cache';
import { describeFilter, keepsRow, type RowFilter } from './row-filter.ts';
import type { TrainingRows } from './step-data.ts';

type RowSelection = RowFilter & { readonly cache: string };

export interface SelectedRows extends TrainingRows {
  /** What the rows are of. */
  readonly tasks: ReadonlySet<string>;
  /** Where they came from. */
  readonly sources: ReadonlySet<string>;
}

/** The rows of the cache that the student trains on, checked against its context and vocabulary. */
export async function selectRows(
  cache: TeacherCache,
  config: ModelConfig,
  { cache: where, ...filter }: RowSelection,
): Promise<SelectedRows> {
  const indices: number[] = [];
  const lengths: number[] = [];
  const tasks = new Set<string>();
  const sources = new Set<string>();
  let index = 0;
  for await (const { row } of cache.rows(undefined, { topk: false, hidden: [] })) {
    const place = index++;
    if (!keepsRow(filter, row)) continue;
    if (row.inputIds.length > config.maxPositions) {
      throw new StillhouseError({
        code: 'ROW_TOO_LONG',
        where: `${where}, row ${row.id}`,
        problem: "the row is longer than the student's context",
        expected: `at most ${config.maxPositions} tokens`,
        got: String(row.inputIds.length),
        remedy: 'Build the cache with a smaller --max-length',
      });
    }
    const largest = row.inputIds.reduce((most, id) => Math.max(most, id), 0);
    if (largest >= config.vocabSize) {
      throw new StillhouseError({
        code: 'VOCABULARY_MISMATCH',
        where: `${where}, row ${row.id}`,
        problem: 'the row has an id that the student does not know',
        expected: `ids below ${config.vocabSize}`,
        got: String(largest),
        remedy: 'Use a student with the same tokenizer as the cache',
      });
    }
    indices.push(place);
    lengths.push(row.inputIds.length);
    if (row.task !== undefined) tasks.add(row.task);
    if (row.source !== undefined) sources.add(row.source);
  }
  if (indices.length === 0) {
    const kept = describeFilter(filter);
    throw new StillhouseError({
      code: 'NO_TRAINING_ROWS',
      where,
      problem: kept === '' ? 'the cache has no rows' : `no row is ${kept}`,
      remedy: 'Choose another cache, or other rows with --split, --tasks, --sources or --verified-only',
    });
  }
  return { indices, lengths: Int32Array.from(lengths), tasks, sources };
}
