import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { openCache } from '@stillhouse/teacher-cache';
import { asyncBufferFromFile, parquetMetadataAsync, parquetReadObjects } from 'hyparquet';
import { test } from 'vitest';
import { exportDatasets, exportTrl } from '../index.ts';
import { buildRandomCache, inFolder, randomRow, SHAPE } from '../testing/random-cache.ts';

for (const positions of ['response', 'all'] as const) {
  test(`TRL rows hold the completion's labels, one list a token, of a cache with labels at ${positions}`, () =>
    inFolder(async (folder) => {
      const shape = { ...SHAPE, positions };
      await buildRandomCache(join(folder, 'cache'), shape);
      const cache = await openCache(join(folder, 'cache'));
      const { files } = await exportTrl(cache, join(folder, 'out'));
      await cache.close();
      let [index, actual, absent] = [0, 0, 0];
      for (const file of files) {
        for (const got of await parquetReadObjects({ file: await asyncBufferFromFile(join(folder, 'out', file)) })) {
          const { row, positions: stored, topk } = randomRow(shape, index++);
          const length = row.inputIds.length;
          const first = row.lossMask.indexOf(1);
          assert.equal(got.prompt_length, first < 0 ? length : first);
          assert.deepEqual(Array.from(got.completion_mask), [...row.lossMask]);
          assert.deepEqual(
            Array.from(got.labels),
            [...row.inputIds].map((id, i) => (row.lossMask[i] === 1 ? id : -100)),
          );
          for (const name of ['logprobs', 'logprob_token_ids', 'actual_logprobs'])
            assert.equal(got[name].length, length - got.prompt_length);
          for (let token = got.prompt_length; token < length; token++) {
            const place = stored.indexOf(token - 1);
            const start = topk!.counts.subarray(0, Math.max(0, place)).reduce((sum, count) => sum + count, 0);
            const end = place < 0 ? start : start + topk!.counts[place]!;
            const [ids, logprobs] = [topk!.ids.slice(start, end), topk!.logprobs.slice(start, end)];
            assert.deepEqual(got.logprob_token_ids[token - got.prompt_length], [...ids]);
            assert.deepEqual(got.logprobs[token - got.prompt_length], [...logprobs]);
            const at = ids.indexOf(row.inputIds[token]!);
            assert.deepEqual(got.actual_logprobs[token - got.prompt_length], at < 0 ? [] : [logprobs[at]]);
            if (at < 0) absent++;
            else actual++;
          }
        }
      }
      assert.equal(index, shape.rows);
      assert.ok(actual > 0 && absent > 0);
    }));
}

test('a datasets folder has a file for each split and shard, and a card that names them', () =>
  inFolder(async (folder) => {
    await buildRandomCache(join(folder, 'cache'), { ...SHAPE, rowsPerShard: 4 });
    const cache = await openCache(join(folder, 'cache'));
    const { rowCount, files } = await exportDatasets(cache, join(folder, 'out'));
    await cache.close();
    assert.equal(rowCount, 7);
    assert.deepEqual((await readdir(join(folder, 'out', 'data'))).sort(), [
      'test-00000.parquet',
      'test-00001.parquet',
      'train-00000.parquet',
      'train-00001.parquet',
    ]);
    assert.equal(files.length, 5);
    const card = await readFile(join(folder, 'out', 'README.md'), 'utf8');
    assert.match(card, /^---\nconfigs:\n- config_name: default\n {2}data_files:\n {2}- split: test\n/);
    assert.match(card, /\| `topk_logprobs` \| natural logarithms/);
    const file = await asyncBufferFromFile(join(folder, 'out', 'data', 'test-00000.parquet'));
    assert.deepEqual(
      (await parquetReadObjects({ file })).map(({ row_id }) => row_id),
      ['row 1 ä'],
    );
    const notes = (await parquetMetadataAsync(file)).key_value_metadata!;
    const { info } = JSON.parse(notes.find(({ key }) => key === 'huggingface')!.value!);
    assert.deepEqual(info.features.loss_mask, { feature: { dtype: 'int8', _type: 'Value' }, _type: 'List' });
    const inner = { feature: { dtype: 'float32', _type: 'Value' }, _type: 'List' };
    assert.deepEqual(info.features.hidden_final, { feature: inner, _type: 'List' });
  }));

test('a split that datasets allows no name for is refused', () =>
  inFolder(async (folder) => {
    await buildRandomCache(join(folder, 'cache'), { ...SHAPE, firstSplit: 'held-out' });
    const cache = await openCache(join(folder, 'cache'));
    await assert.rejects(exportDatasets(cache, join(folder, 'out')), {
      code: 'EXPORT_SPLIT_INVALID',
      message: /got held-out/,
    });
    await cache.close();
  }));
