import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { exportParquet } from '@stillhouse/cache-exchange';
import { openCache } from '@stillhouse/teacher-cache';
import { makeTemporaryFolder, unless } from '@stillhouse/testing';
import { test } from 'vitest';
import { buildCache, runPython, skipWithout } from './exchange.ts';

const SHAPE = { rows: 9, rowsPerShard: 4, maxTokens: 14, vocabSize: 30, k: 5 };

interface OldReader {
  getCursor(): { next(): Promise<Record<string, unknown> | null> };
  close(): Promise<void>;
}

async function writePacked(folder: string) {
  buildCache(join(folder, 'cache'), SHAPE);
  const cache = await openCache(join(folder, 'cache'));
  const { files } = await exportParquet(cache, join(folder, 'out'), { layout: 'packed' });
  return { cache, paths: files.map((name) => join(folder, 'out', name)) };
}

test('parquetjs-lite reads the packed layout, byte for byte', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const { ParquetReader } = createRequire(import.meta.url)('parquetjs-lite') as {
    ParquetReader: { openFile(path: string): Promise<OldReader> };
  };
  const { cache, paths } = await writePacked(folder);
  const bytes = (values: ArrayBufferView) => Buffer.from(values.buffer, values.byteOffset, values.byteLength);
  let index = 0;
  for (const path of paths) {
    const reader = await ParquetReader.openFile(path);
    const cursor = reader.getCursor();
    for (let got = await cursor.next(); got !== null; got = await cursor.next()) {
      const { row, positions, topk } = await cache.readRow(index++);
      assert.equal(got.row_id, row.id);
      assert.equal(got.split ?? undefined, row.split);
      assert.deepEqual(got.input_ids, bytes(row.inputIds));
      assert.deepEqual(got.positions, bytes(positions));
      assert.deepEqual(got.topk_counts, bytes(topk!.counts));
      assert.deepEqual(got.topk_ids, bytes(topk!.ids));
      assert.deepEqual(got.topk_logprobs, bytes(topk!.logprobs));
      assert.deepEqual(got.log_z, bytes(topk!.logZ));
    }
    await reader.close();
  }
  assert.equal(index, SHAPE.rows);
  await cache.close();
});

test('pyarrow, polars and DuckDB read the packed layout too', unless(skipWithout('duckdb')), async (t) => {
  const folder = await makeTemporaryFolder(t);
  const { cache } = await writePacked(folder);
  const rows = JSON.parse(runPython('read_packed_parquet.py', join(folder, 'out')));
  assert.equal(rows.length, SHAPE.rows);
  for (const [index, got] of rows.entries()) {
    const { row, positions, topk } = await cache.readRow(index);
    assert.deepEqual(
      [got.row_id, got.answer, got.input_ids, got.loss_mask, got.positions],
      [row.id, row.answer ?? null, [...row.inputIds], [...row.lossMask], [...positions]],
    );
    assert.deepEqual(
      [got.topk_counts, got.topk_ids, got.topk_logprobs, got.log_z],
      [[...topk!.counts], [...topk!.ids], [...topk!.logprobs], [...topk!.logZ]],
    );
  }
  await cache.close();
});
