import assert from 'node:assert/strict';
import { join } from 'node:path';
import { exportAxolotl, exportDatasets, exportTrl } from '@stillhouse/cache-exchange';
import { openCache } from '@stillhouse/teacher-cache';
import { makeTemporaryFolder, unless } from '@stillhouse/testing';
import { test } from 'vitest';
import { buildCache, readSpreadRows, runPython, skipWithout } from './exchange.ts';

const SHAPE = { rows: 9, rowsPerShard: 4, maxTokens: 14, vocabSize: 30, k: 5 };
/** A clone of github.com/axolotl-ai-cloud/axolotl, 0.10 or later. */
const axolotl = process.env.STILLHOUSE_AXOLOTL;
const skipAxolotl =
  axolotl === undefined
    ? 'set STILLHOUSE_AXOLOTL to a clone of github.com/axolotl-ai-cloud/axolotl'
    : skipWithout('datasets', 'torch', 'transformers');

test('datasets loads a folder by its name alone, with typed features, by split', {
  ...unless(skipWithout('datasets')),
}, async (t) => {
  const folder = await makeTemporaryFolder(t);
  buildCache(join(folder, 'cache'), SHAPE);
  const cache = await openCache(join(folder, 'cache'));
  await exportDatasets(cache, join(folder, 'out'));
  const { features, rows } = JSON.parse(runPython('read_datasets.py', join(folder, 'out')));
  const want = await readSpreadRows(cache);
  await cache.close();
  assert.deepEqual(Object.keys(rows).sort(), ['test', 'train']);
  assert.deepEqual(
    rows.test,
    want.filter(({ split }) => split === 'test'),
  );
  assert.deepEqual(
    rows.train,
    want.filter(({ split }) => split !== 'test'),
  );
  assert.deepEqual(features.train, features.test);
  assert.equal(features.train.loss_mask, "List(Value('int8'))");
  assert.equal(features.train.topk_ids, "List(List(Value('int32')))");
  assert.equal(features.train.topk_logprobs, "List(List(Value('float32')))");
  assert.equal(features.train.hidden_2, "List(List(Value('float32')))");
  assert.equal(features.train.answer, "Value('string')");
});

test("axolotl's collator takes the rows, and its loss is the one of the cache's labels", {
  ...unless(skipAxolotl),
}, async (t) => {
  const folder = await makeTemporaryFolder(t);
  buildCache(join(folder, 'cache'), SHAPE);
  const cache = await openCache(join(folder, 'cache'));
  await exportAxolotl(cache, join(folder, 'out'));
  const batches = JSON.parse(runPython('read_axolotl.py', axolotl!, join(folder, 'out'), String(SHAPE.vocabSize)));
  assert.equal(batches.length, 3);
  for (const [batch, { labels, entries, loss }] of batches.entries()) {
    let [sum, count] = [0, 0];
    for (let row = 0; row < 3; row++) {
      const { row: tokens, positions, topk } = await cache.readRow(3 * batch + row);
      assert.deepEqual(
        labels[row].slice(0, tokens.inputIds.length),
        [...tokens.inputIds].map((id, i) => (tokens.lossMask[i] === 1 ? id : -100)),
      );
      let start = 0;
      for (const [place, position] of positions.entries()) {
        const end = start + topk!.counts[place]!;
        const logits = Array.from({ length: SHAPE.vocabSize }, (_, id) => Math.sin(row + 3 * position + 7 * id));
        const norm = Math.log(logits.reduce((total, logit) => total + Math.exp(logit), 0));
        const mass = topk!.logprobs.subarray(start, end).reduce((total, logprob) => total + Math.exp(logprob), 0);
        for (let i = start; i < end; i++) {
          const p = Math.exp(topk!.logprobs[i]!) / mass;
          sum += p * (Math.log(p) - (logits[topk!.ids[i]!]! - norm));
        }
        count += end - start;
        start = end;
      }
    }
    assert.equal(entries, count);
    assert.ok(Math.abs(loss - sum / count) < 1e-5, `${loss} ${sum / count}`);
  }
  await cache.close();
});

test("TRL's SFTTrainer takes the rows as they are; the teacher's lists begin with the completion", {
  ...unless(skipWithout('datasets', 'torch', 'trl')),
}, async (t) => {
  const folder = await makeTemporaryFolder(t);
  buildCache(join(folder, 'cache'), { ...SHAPE, maxTokens: 20 });
  const cache = await openCache(join(folder, 'cache'));
  await exportTrl(cache, join(folder, 'out'));
  const got = JSON.parse(runPython('read_trl.py', join(folder, 'out')));
  // The trainer may sort, and drops rows that have nothing to learn.
  const byIds = new Map<string, readonly number[]>();
  for (const [i, ids] of got.input_ids.entries()) {
    const length = got.labels[i].findLastIndex((label: number) => label !== -100) + 1;
    byIds.set(ids.slice(0, length).join(' '), got.labels[i].slice(0, length));
  }
  let matched = 0;
  for (let index = 0; index < SHAPE.rows; index++) {
    const { row, positions, topk } = await cache.readRow(index);
    const { prompt_length: prompt, logprobs, logprob_token_ids: ids } = got.rows[index];
    for (const [place, position] of positions.entries()) {
      const start = topk!.counts.subarray(0, place).reduce((total, count) => total + count, 0);
      const end = start + topk!.counts[place]!;
      assert.deepEqual(logprobs[position + 1 - prompt], [...topk!.logprobs.subarray(start, end)]);
      assert.deepEqual(ids[position + 1 - prompt], [...topk!.ids.subarray(start, end)]);
    }
    const length = row.lossMask.lastIndexOf(1) + 1;
    if (length === 0) continue;
    const labels = [...row.inputIds.subarray(0, length)].map((id, i) => (row.lossMask[i] === 1 ? id : -100));
    assert.deepEqual(byIds.get([...row.inputIds.subarray(0, length)].join(' ')), labels);
    matched++;
  }
  assert.ok(matched > 5);
  await cache.close();
});
