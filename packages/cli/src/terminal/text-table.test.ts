import assert from 'node:assert/strict';
import { test } from 'vitest';
import { printPairs, printTable } from './text-table.ts';

test('columns are aligned', () => {
  assert.equal(
    printPairs([
      ['rows', '3'],
      ['nothing', undefined],
      ['tokens', '12'],
    ]),
    'rows    3\ntokens  12',
  );
  assert.equal(
    printTable([
      ['group', 'size'],
      ['a', '1,000'],
    ]),
    'group   size\na      1,000',
  );
});
