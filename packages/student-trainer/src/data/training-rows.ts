import type { ModelConfig } from '@stillhouse/checkpoint';
import { StillhouseError } from '@stillhouse/errors';
import { requireRowFits } from '@stillhouse/objectives';
import type { TeacherCache } from '@stillhouse/teacher-cache';
import { describeFilter, keepsRow, type RowFilter } from '../settings/row-filter.ts';
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
    requireRowFits(row.inputIds, config, `${where}, row ${row.id}`);
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
