import assert from 'node:assert/strict';
import { mkdir, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { dequantiseHidden, openCache } from '@stillhouse/teacher-cache';
import { asyncBufferFromFile, parquetMetadataAsync, parquetReadObjects } from 'hyparquet';
import { test } from 'vitest';
import { toCacheRow } from '../export/cache-columns.ts';
import { exportParquet } from '../index.ts';
import { buildRandomCache, channelRms, inFolder, randomRow, SHAPE as shape } from '../testing/random-cache.ts';

test('a Parquet export holds every label at its position and names the temperatures', () =>
  inFolder(async (folder) => {
    await buildRandomCache(join(folder, 'cache'), shape);
    const cache = await openCache(join(folder, 'cache'));
    const { files, rowCount } = await exportParquet(cache, join(folder, 'out'));
    await cache.close();
    assert.deepEqual(await readdir(join(folder, 'out')), ['00000.parquet', '00001.parquet', '00002.parquet']);
    assert.equal(rowCount, 7);
    let index = 0;
    for (const file of files) {
      const buffer = await asyncBufferFromFile(join(folder, 'out', file));
      const { key_value_metadata } = await parquetMetadataAsync(buffer);
      const notes = new Map(key_value_metadata?.map(({ key, value }) => [key, value]));
      assert.equal(notes.get('stillhouse.temperatures'), '[1,2,4]');
      assert.match(JSON.parse(notes.get('stillhouse.columns')!).log_z, /T = 1, 2, 4; entry p belongs to position p/);
      for (const got of await parquetReadObjects({ file: buffer })) {
        const { row, positions, topk, hidden } = randomRow(shape, index++);
        assert.equal(got.row_id, row.id);
        for (const name of ['task', 'split', 'source', 'answer'] as const)
          assert.equal(got[name] ?? undefined, row[name]);
        assert.deepEqual(Array.from(got.input_ids), [...row.inputIds]);
        assert.deepEqual(Array.from(got.loss_mask), [...row.lossMask]);
        const stored = new Map([...positions].map((position, place) => [position, place]));
        const starts = [0];
        for (const count of topk!.counts) starts.push(starts.at(-1)! + count);
        const states = dequantiseHidden(hidden!.get('final')!, channelRms(5));
        assert.equal(got.topk_ids.length, row.inputIds.length - 1);
        for (let position = 0; position < row.inputIds.length - 1; position++) {
          const place = stored.get(position);
          const part = (values: ArrayLike<number>, start: number, end: number) =>
            place === undefined ? [] : Array.from(values).slice(start, end);
          const entries = [starts[place ?? 0]!, starts[(place ?? 0) + 1] ?? 0] as const;
          assert.deepEqual(got.topk_ids[position], part(topk!.ids, ...entries));
          assert.deepEqual(got.topk_logprobs[position], part(topk!.logprobs, ...entries));
          assert.deepEqual(got.log_z[position], part(topk!.logZ, (place ?? 0) * 3, (place ?? 0) * 3 + 3));
          assert.deepEqual(got.hidden_final[position], part(states, (place ?? 0) * 5, (place ?? 0) * 5 + 5));
        }
      }
    }
    assert.equal(index, 7);
  }));

test('an export has the groups the cache was opened with, and never writes over something', () =>
  inFolder(async (folder) => {
    await buildRandomCache(join(folder, 'cache'), shape);
    const cache = await openCache(join(folder, 'cache'), { groups: ['rows'] });
    await exportParquet(cache, join(folder, 'out'));
    const rows = await parquetReadObjects({ file: await asyncBufferFromFile(join(folder, 'out', '00000.parquet')) });
    assert.deepEqual(
      Object.keys(rows[0]!).join(' '),
      'row_id input_ids loss_mask task split source answer topk_ids topk_logprobs log_z',
    );
    assert.ok(rows.every((row) => row.topk_ids.every((list: unknown[]) => list.length === 0)));
    await assert.rejects(exportParquet(cache, join(folder, 'out')), { code: 'EXPORT_FOLDER_NOT_EMPTY' });
    await mkdir(join(folder, 'other'));
    await writeFile(join(folder, 'other', 'x'), '');
    await assert.rejects(exportParquet(cache, join(folder, 'other')), { code: 'EXPORT_FOLDER_NOT_EMPTY' });
    await cache.close();
    assert.deepEqual((await readdir(folder)).sort(), ['cache', 'other', 'out']);
  }));

test('a row whose labels do not fit into a Parquet page is refused', () => {
  // Untouched zeros take no memory: 2^31 states of int8 at 2^21 positions.
  const width = 1024;
  const values = new Int8Array(width * 2 ** 21);
  const hidden = new Map([['final' as const, { layer: 'final' as const, dtype: 'int8' as const, width, values }]]);
  assert.throws(() => toCacheRow({ ...randomRow(shape, 0), hidden }), { code: 'EXPORT_ROW_TOO_LARGE' });
});

test('the packed layout holds arrays as bytes, at the stored positions alone', () =>
  inFolder(async (folder) => {
    await buildRandomCache(join(folder, 'cache'), shape);
    const cache = await openCache(join(folder, 'cache'));
    const { files } = await exportParquet(cache, join(folder, 'out'), { layout: 'packed' });
    await cache.close();
    let index = 0;
    for (const file of files) {
      const buffer = await asyncBufferFromFile(join(folder, 'out', file));
      for (const got of await parquetReadObjects({ file: buffer, utf8: false })) {
        const { row, positions, topk, hidden } = randomRow(shape, index++);
        const bytes = (values: ArrayBufferView) => Buffer.from(values.buffer, values.byteOffset, values.byteLength);
        const states = dequantiseHidden(hidden!.get(2)!, channelRms(5));
        assert.equal(got.row_id, row.id);
        assert.equal(got.split ?? undefined, row.split);
        assert.deepEqual(Buffer.from(got.input_ids), bytes(row.inputIds));
        assert.deepEqual(Buffer.from(got.loss_mask), bytes(row.lossMask));
        assert.deepEqual(Buffer.from(got.positions), bytes(positions));
        assert.deepEqual(Buffer.from(got.topk_counts), bytes(topk!.counts));
        assert.deepEqual(Buffer.from(got.topk_ids), bytes(topk!.ids));
        assert.deepEqual(Buffer.from(got.topk_logprobs), bytes(topk!.logprobs));
        assert.deepEqual(Buffer.from(got.log_z), bytes(topk!.logZ));
        assert.deepEqual(Buffer.from(got.hidden_2), bytes(states));
      }
    }
    assert.equal(index, 7);
  }));
