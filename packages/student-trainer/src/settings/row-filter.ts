import { StillhouseError } from '@stillhouse/errors';
import type { CachedRow } from '@stillhouse/teacher-cache';
import type { TrainingSettings } from './training-settings.ts';

/** Which rows are trained on: those that all of these hold for. */
export type RowFilter = Pick<TrainingSettings, 'split' | 'tasks' | 'sources' | 'verifiedOnly'>;

/** Whether a row is trained on: one without a task or a source is of none. */
export function keepsRow({ split, tasks, sources, verifiedOnly }: RowFilter, row: CachedRow): boolean {
  if (split !== undefined && row.split !== split) return false;
  if (tasks !== undefined && (row.task === undefined || !tasks.includes(row.task))) return false;
  if (sources !== undefined && (row.source === undefined || !sources.includes(row.source))) return false;
  return !verifiedOnly || row.answer !== undefined;
}

/** What a row must be, in words; empty where any will do. */
export function describeFilter({ split, tasks, sources, verifiedOnly }: RowFilter): string {
  return [
    split === undefined ? [] : `of split ${split}`,
    tasks === undefined ? [] : `of task ${tasks.join(' or ')}`,
    sources === undefined ? [] : `of source ${sources.join(' or ')}`,
    verifiedOnly ? 'with a verified answer' : [],
  ]
    .flat()
    .join(', ');
}

/**
 * A task or a source that is asked for and that no row is of is most likely a wrong name.
 * @param present tasks and sources of the rows that are left
 * @throws StillhouseError TASK_NOT_IN_CACHE, SOURCE_NOT_IN_CACHE
 */
export function checkFilter(
  { tasks, sources }: RowFilter,
  present: Readonly<Record<'tasks' | 'sources', ReadonlySet<string>>>,
  where: string,
): void {
  const kinds = [
    { code: 'TASK_NOT_IN_CACHE', flag: '--tasks', kind: 'task', wanted: tasks, found: present.tasks },
    { code: 'SOURCE_NOT_IN_CACHE', flag: '--sources', kind: 'source', wanted: sources, found: present.sources },
  ];
  for (const { code, flag, kind, wanted = [], found } of kinds) {
    const absent = wanted.find((name) => !found.has(name));
    if (absent === undefined) continue;
    throw new StillhouseError({
      code,
      where: flag,
      problem: `no row of ${where} that the other filters leave is of this ${kind}`,
      expected: `some of ${[...found].sort().join(', ')}`,
      got: absent,
      remedy: 'Correct the name, or leave it out',
    });
  }
}
