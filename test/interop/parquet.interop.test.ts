import assert from 'node:assert/strict';
import { join } from 'node:path';
import { exportParquet } from '@stillhouse/cache-exchange';
import { openCache } from '@stillhouse/teacher-cache';
import { makeTemporaryFolder, unless } from '@stillhouse/testing';
import { test } from 'vitest';
import { buildCache, readSpreadRows, runPython, skipWithout } from './exchange.ts';

test('pyarrow, polars and DuckDB read a Parquet export, value for value', {
  ...unless(skipWithout('duckdb')),
}, async (t) => {
  const folder = await makeTemporaryFolder(t);
  buildCache(join(folder, 'cache'), { rows: 9, rowsPerShard: 4, maxTokens: 14, vocabSize: 30, k: 5 });
  const cache = await openCache(join(folder, 'cache'));
  await exportParquet(cache, join(folder, 'out'));
  const got = JSON.parse(runPython('read_parquet.py', join(folder, 'out')));
  assert.deepEqual(got.types, {
    row_id: 'string',
    input_ids: 'list<element: int32 not null>',
    loss_mask: 'list<element: int8 not null>',
    task: 'string',
    split: 'string',
    source: 'string',
    answer: 'string',
    topk_ids: 'list<element: list<element: int32 not null> not null>',
    topk_logprobs: 'list<element: list<element: float not null> not null>',
    log_z: 'list<element: list<element: float not null> not null>',
    hidden_final: 'list<element: list<element: float not null> not null>',
    hidden_2: 'list<element: list<element: float not null> not null>',
  });
  assert.equal(got.duckdbTypes.loss_mask, 'TINYINT[]');
  assert.equal(got.duckdbTypes.hidden_2, 'FLOAT[][]');
  assert.equal(got.metadata['stillhouse.temperatures'], '[1,2,4]');
  assert.deepEqual(got.rows, await readSpreadRows(cache));
  await cache.close();
});
