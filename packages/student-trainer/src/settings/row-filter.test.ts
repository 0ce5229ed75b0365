import assert from 'node:assert/strict';
import type { CachedRow } from '@stillhouse/teacher-cache';
import { test } from 'vitest';
import { checkFilter, describeFilter, keepsRow, type RowFilter } from './row-filter.ts';

const ANY: RowFilter = { split: undefined, tasks: undefined, sources: undefined, verifiedOnly: false };
const row = (given: Partial<CachedRow>): CachedRow => ({
  id: 'row',
  inputIds: Int32Array.of(1, 2),
  lossMask: Uint8Array.of(0, 1),
  ...given,
});

test('a row is kept where all that is asked for holds; what it does not say it is not', () => {
  const math = row({ split: 'train', task: 'math', source: 'gsm8k', answer: '42' });
  const bare = row({});
  const cases: readonly [Partial<RowFilter>, CachedRow, boolean][] = [
    [{}, bare, true],
    [{ split: 'train' }, math, true],
    [{ split: 'test' }, math, false],
    [{ split: 'train' }, bare, false],
    [{ tasks: ['code', 'math'] }, math, true],
    [{ tasks: ['code'] }, math, false],
    [{ tasks: ['code'] }, bare, false],
    [{ sources: ['gsm8k'], verifiedOnly: true }, math, true],
    [{ sources: ['gsm8k'] }, bare, false],
    [{ verifiedOnly: true }, bare, false],
    [{ tasks: ['math'], sources: ['other'] }, math, false],
  ];
  for (const [filter, one, isKept] of cases) assert.equal(keepsRow({ ...ANY, ...filter }, one), isKept);
  assert.equal(describeFilter(ANY), '');
  assert.equal(
    describeFilter({ split: 'train', tasks: ['a', 'b'], sources: ['s'], verifiedOnly: true }),
    'of split train, of task a or b, of source s, with a verified answer',
  );
});

test('names that no row has are refused, with those that there are', () => {
  const present = { tasks: new Set(['math', 'code']), sources: new Set(['gsm8k']) };
  checkFilter({ ...ANY, tasks: ['math'], sources: ['gsm8k'] }, present, 'CACHE');
  assert.throws(() => checkFilter({ ...ANY, tasks: ['math', 'maths'] }, present, 'CACHE'), {
    code: 'TASK_NOT_IN_CACHE',
    message: /--tasks: no row of CACHE.*some of code, math, got maths/,
  });
  assert.throws(() => checkFilter({ ...ANY, sources: ['gsm'] }, present, 'CACHE'), {
    code: 'SOURCE_NOT_IN_CACHE',
    message: /--sources: .*some of gsm8k, got gsm/,
  });
});
