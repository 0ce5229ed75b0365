import assert from 'node:assert/strict';
import { test } from 'vitest';
import { strftime } from './strftime.ts';

test('dates are written as Python writes them in the C locale', () => {
  // datetime(2024, 2, 5, 0, 7, 9).strftime(...) and datetime(2024, 12, 31, 13, 0, 0).strftime(...)
  const early = new Date(2024, 1, 5, 0, 7, 9);
  const late = new Date(2024, 11, 31, 13, 0, 0);
  assert.equal(
    strftime(early, '%Y-%m-%d %H:%M:%S %y %b %B %a %A %j %I %p %%'),
    '2024-02-05 00:07:09 24 Feb February Mon Monday 036 12 AM %',
  );
  assert.equal(strftime(early, '%-d/%-m %e|%-e %-H %-j'), '5/2  5|5 0 36');
  assert.equal(strftime(late, '%j %I %p %-I %d %B'), '366 01 PM 1 31 December');
  assert.equal(strftime(late, '%Q 100%'), '%Q 100%');
});
