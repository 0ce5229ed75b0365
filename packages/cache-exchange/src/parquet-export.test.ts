import assert from 'node:assert/strict';
import { mkdir, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { dequantiseHidden, openCache } from '@stillhouse/teacher-cache';
import { asyncBufferFromFile, parquetMetadataAsync, parquetReadObjects } from 'hyparquet';
import { exportParquet } from './index.ts';
import { measureExportRow } from './parquet-export.ts';
import { buildRandomCache, channelRms, inFolder, randomRow, SHAPE as shape } from './testing/random-cache.ts';

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
      assert.equal(key_value_metadata?.find(({ key }) => key === 'stillhouse.temperatures')?.value, '[1,2,4]');
      for (const got of await parquetReadObjects({ file: buffer })) {
        const { row, positions, topk, hidden } = randomRow(shape, index++);
        assert.equal(got.row_id, row.id);
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
    assert.deepEqual(Object.keys(rows[0]!), ['row_id', 'input_ids', 'loss_mask', 'topk_ids', 'topk_logprobs', 'log_z']);
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
  assert.throws(() => measureExportRow({ ...randomRow(shape, 0), hidden }), { code: 'EXPORT_ROW_TOO_LARGE' });
});
