import { StillhouseError } from '@stillhouse/errors';
import type { Partition } from '@stillhouse/teacher-cache';

/** Says that the whole cache is built, whatever the environment says. */
const NO_PARTITION = 'none';

function refuse(where: string, problem: string, got: string, expected?: string): never {
  throw new StillhouseError({
    code: 'PARTITION_INVALID',
    where,
    problem,
    ...(expected === undefined ? {} : { expected }),
    got,
    remedy: 'Give --partition i/n, such as 1/4 to 4/4, or --partition none for the whole cache',
  });
}

/**
 * The partition that `--partition` names: `i/n` with i from 1, or `none`.
 * @throws StillhouseError PARTITION_INVALID
 */
export function parsePartition(setting: string | undefined): Partition | undefined {
  if (setting === undefined || setting === NO_PARTITION) return undefined;
  const match = /^(\d+)\/(\d+)$/.exec(setting);
  const [index, count] = [Number(match?.[1]), Number(match?.[2])];
  if (match === null || !(index >= 1 && index <= count && Number.isSafeInteger(count))) {
    refuse('--partition', 'there is no such part', setting, 'i/n with i from 1 to n');
  }
  return { index, count };
}

type Environment = Readonly<Record<string, string | undefined>>;

/**
 * The partition that a cluster's scheduler gives this process, with the variable it is read from: a task of a Slurm job
 * array (whatever its first number and step), or a pod of a Kubernetes Indexed Job, whose number of completions the pod
 * is told in JOB_COMPLETIONS. An array or job of one is none.
 * @returns undefined outside of such a job
 * @throws StillhouseError PARTITION_INVALID
 */
export function findPartition(
  environment: Environment,
): { readonly setting: string; readonly source: string } | undefined {
  const found = findSlurmTask(environment) ?? findIndexedJob(environment);
  if (found === undefined || found.count === 1) return undefined;
  return { setting: `${found.index + 1}/${found.count}`, source: found.source };
}

interface FoundTask {
  /** From 0. */
  readonly index: number;
  readonly count: number;
  readonly source: string;
}

function findSlurmTask(environment: Environment): FoundTask | undefined {
  const source = 'SLURM_ARRAY_TASK_ID';
  if ((environment[source] ?? '') === '') return undefined;
  const read = (name: string, fallback?: number) => readCount(environment, name, fallback);
  const count = read('SLURM_ARRAY_TASK_COUNT');
  const step = Math.max(1, read('SLURM_ARRAY_TASK_STEP', 1));
  const index = (read(source) - read('SLURM_ARRAY_TASK_MIN', 0)) / step;
  if (!Number.isInteger(index) || index < 0 || index >= count) {
    const got = ['ID', 'COUNT', 'MIN', 'STEP'].map((name) => environment[`SLURM_ARRAY_TASK_${name}`]).join(', ');
    refuse(source, 'the numbers of the array are not evenly spaced', `id, count, min, step: ${got}`);
  }
  return { index, count, source };
}

function findIndexedJob(environment: Environment): FoundTask | undefined {
  const source = 'JOB_COMPLETION_INDEX';
  if ((environment[source] ?? '') === '') return undefined;
  const named = ['JOB_COMPLETIONS', 'JOB_PARALLELISM'].find((name) => (environment[name] ?? '') !== '');
  if (named === undefined) refuse(source, 'the number of completions is not known, set JOB_COMPLETIONS', 'nothing');
  const [index, count] = [readCount(environment, source), readCount(environment, named)];
  if (index >= count) refuse(source, `it is not below ${named}`, `${index} of ${count}`);
  return { index, count, source };
}

function readCount(environment: Environment, name: string, fallback?: number): number {
  const text = environment[name] ?? '';
  if (text === '' && fallback !== undefined) return fallback;
  if (!/^\d+$/.test(text)) refuse(name, 'it is not a whole number', text === '' ? 'nothing' : text);
  return Number(text);
}
