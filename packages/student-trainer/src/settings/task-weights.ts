import { StillhouseError } from '@stillhouse/errors';
import type { TaskWeights } from '@stillhouse/objectives';

const ENTRY = /^([^=]+)=([^=]+)$/;

/** One of `taskWeights`: a task, "=", and a number above 0. */
export function isTaskWeight(value: unknown): value is string {
  const weight = typeof value === 'string' ? Number(ENTRY.exec(value)?.[2]?.trim() || Number.NaN) : Number.NaN;
  return weight > 0 && Number.isFinite(weight);
}

/**
 * Weights by task from entries that `isTaskWeight` holds for.
 * @throws StillhouseError SETTING_INVALID where a task comes twice
 */
export function parseTaskWeights(entries: readonly string[]): TaskWeights {
  const weights = new Map<string, number>();
  for (const entry of entries) {
    const [, task, weight] = ENTRY.exec(entry)!;
    const name = task!.trim();
    if (weights.has(name)) {
      throw new StillhouseError({
        code: 'SETTING_INVALID',
        where: '--task-weights',
        problem: `the task ${name} has more than one weight`,
        expected: 'each task once',
        got: entries.join(','),
      });
    }
    weights.set(name, Number(weight));
  }
  return weights;
}

/**
 * A weight for a task that no row is of would change nothing: most likely its name is wrong.
 * @param present tasks of the rows that a run trains on
 * @throws StillhouseError TASK_NOT_IN_CACHE
 */
export function checkTaskWeights(weights: TaskWeights, present: ReadonlySet<string>, where: string): void {
  const absent = [...weights.keys()].find((task) => !present.has(task));
  if (absent === undefined) return;
  throw new StillhouseError({
    code: 'TASK_NOT_IN_CACHE',
    where: '--task-weights',
    problem: `no row of ${where} that the run trains on is of this task`,
    expected:
      present.size === 0 ? 'no task weights: its rows have no tasks' : `some of ${[...present].sort().join(', ')}`,
    got: absent,
    remedy: 'Correct the name, or leave the task out',
  });
}
