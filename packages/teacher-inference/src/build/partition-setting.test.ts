import assert from 'node:assert/strict';
import { test } from 'vitest';
import { findPartition, parsePartition } from '../index.ts';

test('a partition is named by its number and their count, from 1', () => {
  assert.deepEqual(parsePartition('2/4'), { index: 2, count: 4 });
  assert.deepEqual(parsePartition('1/1'), { index: 1, count: 1 });
  assert.equal(parsePartition(undefined), undefined);
  assert.equal(parsePartition('none'), undefined);
  for (const wrong of ['0/4', '5/4', '2', '2/', '/4', 'a/b', '1.5/4', '-1/4', '1/0']) {
    assert.throws(() => parsePartition(wrong), { code: 'PARTITION_INVALID', message: /i\/n with i from 1/ });
  }
});

const slurm = (id: number, min: number, count: number, step?: number) => ({
  SLURM_ARRAY_TASK_ID: String(id),
  SLURM_ARRAY_TASK_MIN: String(min),
  SLURM_ARRAY_TASK_COUNT: String(count),
  ...(step === undefined ? {} : { SLURM_ARRAY_TASK_STEP: String(step) }),
});

test('a task of a Slurm array knows its partition, whatever its numbers begin with and step by', () => {
  const settings = (ids: readonly number[], min: number, step?: number) =>
    ids.map((id) => findPartition(slurm(id, min, ids.length, step))?.setting);
  assert.deepEqual(settings([0, 1, 2, 3], 0), ['1/4', '2/4', '3/4', '4/4']);
  assert.deepEqual(settings([1, 2, 3], 1, 1), ['1/3', '2/3', '3/3']);
  assert.deepEqual(settings([10, 13, 16], 10, 3), ['1/3', '2/3', '3/3']);
  assert.equal(findPartition(slurm(7, 7, 1)), undefined);
  assert.equal(findPartition({}), undefined);
  assert.equal(findPartition(slurm(1, 0, 2))?.source, 'SLURM_ARRAY_TASK_ID');
  assert.throws(() => findPartition(slurm(5, 1, 3, 1)), { code: 'PARTITION_INVALID', message: /not evenly spaced/ });
  assert.throws(() => findPartition(slurm(2, 1, 3, 2)), { code: 'PARTITION_INVALID' });
  assert.throws(() => findPartition({ SLURM_ARRAY_TASK_ID: '1' }), { message: /SLURM_ARRAY_TASK_COUNT/ });
});

test('a pod of an Indexed Job is told how many there are', () => {
  assert.equal(findPartition({ JOB_COMPLETION_INDEX: '0', JOB_COMPLETIONS: '3' })?.setting, '1/3');
  assert.equal(findPartition({ JOB_COMPLETION_INDEX: '2', JOB_COMPLETIONS: '3' })?.setting, '3/3');
  assert.equal(findPartition({ JOB_COMPLETION_INDEX: '2', JOB_PARALLELISM: '5' })?.setting, '3/5');
  assert.equal(findPartition({ JOB_COMPLETION_INDEX: '0', JOB_COMPLETIONS: '1' }), undefined);
  for (const environment of [
    { JOB_COMPLETION_INDEX: '0' },
    { JOB_COMPLETION_INDEX: '3', JOB_COMPLETIONS: '3' },
    { JOB_COMPLETION_INDEX: 'x', JOB_COMPLETIONS: '3' },
  ]) {
    assert.throws(() => findPartition(environment), { code: 'PARTITION_INVALID' });
  }
});
