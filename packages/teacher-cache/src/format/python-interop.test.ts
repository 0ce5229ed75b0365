import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { unless } from '@stillhouse/testing';
import { test } from 'vitest';
import { dequantiseHidden, openCache, verifyCache } from '../index.ts';
import { buildRandomCache, fixedChannelRms, type RandomCacheShape, randomRow } from '../testing/random-cache.ts';
import { inFolder } from '../testing/scratch-folder.ts';

const python = process.env.STILLHOUSE_PYTHON;
const skip = python ? false : 'set STILLHOUSE_PYTHON to a python with pyarrow and polars';
const runPython = (script: string, ...args: string[]) =>
  execFileSync(python!, [fileURLToPath(new URL(`../testing/${script}`, import.meta.url)), ...args], {
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  });

/** Cuts flat values into lists of the given lengths. */
function cut(values: ArrayLike<number>, lengths: readonly number[]): number[][] {
  let start = 0;
  return lengths.map((length) => {
    start += length;
    return Array.from(values).slice(start - length, start);
  });
}

test('pyarrow and polars read a cache, value for value', unless(skip), () =>
  inFolder(async (folder) => {
    const shape: RandomCacheShape = {
      seed: 5,
      rows: 9,
      rowsPerShard: 4,
      maxTokens: 14,
      vocabSize: 30,
      hiddenSize: 6,
      k: 5,
    };
    const description = await buildRandomCache(join(folder, 'cache'), shape);
    const got = JSON.parse(runPython('read_cache.py', join(folder, 'cache')));
    assert.deepEqual(got.types, {
      rows: {
        row_id: 'string',
        input_ids: 'list<item: int32 not null>',
        loss_mask: 'list<item: int8 not null>',
        task: 'string',
        split: 'string',
        source: 'string',
        answer: 'string',
      },
      topk: {
        row_id: 'string',
        ids: 'list<item: list<item: int32 not null> not null>',
        logprobs: 'list<item: list<item: float not null> not null>',
        log_z: 'list<item: fixed_size_list<item: float not null>[3] not null>',
      },
      'hidden-final': {
        row_id: 'string',
        values: 'list<item: fixed_size_list<item: int8 not null>[6] not null>',
        token_scale: 'list<item: float not null>',
      },
      'hidden-2': {
        row_id: 'string',
        values: 'list<item: fixed_size_list<item: int8 not null>[6] not null>',
        token_scale: 'list<item: float not null>',
      },
    });
    assert.equal(got.rows.length, 9);
    for (const [index, row] of got.rows.entries()) {
      const want = randomRow(shape, index, description);
      const { counts, ids, logprobs, logZ } = want.topk!;
      assert.equal(row.row_id, want.row.id);
      assert.deepEqual(row.input_ids, [...want.row.inputIds]);
      assert.deepEqual(row.loss_mask, [...want.row.lossMask]);
      for (const name of ['task', 'split', 'source', 'answer'] as const) {
        assert.equal(row[name], want.row[name] ?? null);
      }
      const stored = {
        topk_ids: cut(ids, [...counts]),
        topk_logprobs: cut(logprobs, [...counts]),
        log_z: cut(logZ, Array(counts.length).fill(3)),
        hidden_final: cut(
          dequantiseHidden(want.hidden!.get('final')!, fixedChannelRms(6)),
          Array(counts.length).fill(6),
        ),
        hidden_2: cut(dequantiseHidden(want.hidden!.get(2)!, fixedChannelRms(6)), Array(counts.length).fill(6)),
      };
      assert.deepEqual(row.ids, stored.topk_ids);
      assert.deepEqual(row.logprobs, stored.topk_logprobs);
      assert.deepEqual(row.log_z, stored.log_z);
      assert.deepEqual(row['hidden-final'], stored.hidden_final);
      assert.deepEqual(row['hidden-2'], stored.hidden_2);
    }
    assert.equal(got.weightCount, 30 * 6);
    const bits = new Uint32Array(Float32Array.from(got.weights).buffer);
    assert.ok(bits.every((word, i) => word === i << 16));
  }),
);

for (const logprobDtype of ['float32', 'float16', 'uint16', 'uint8'] as const) {
  test(`pyarrow and NumPy read packed labels with ${logprobDtype} logprobs, and sampled ones`, unless(skip), () =>
    inFolder(async (folder) => {
      const shape: RandomCacheShape = {
        seed: 6,
        rows: 4,
        rowsPerShard: 3,
        maxTokens: 14,
        // Ids of three bytes.
        vocabSize: 70_000,
        hiddenSize: 1,
        k: 40,
        topk: { packing: 'zstd', logprobDtype, topP: 0.001, minK: 1, pinnedIds: [69_999], keepTarget: true },
        sampled: { draws: 300, temperature: 1 },
      };
      const description = await buildRandomCache(join(folder, 'cache'), shape);
      const got = JSON.parse(runPython('read_packed.py', join(folder, 'cache')));
      assert.equal(got.length, 4);
      for (const [index, row] of got.entries()) {
        const { row: want, topk, sampled } = randomRow(shape, index, description);
        assert.equal(row.row_id, want.id);
        const counts = [...topk!.counts];
        assert.deepEqual(row.topk.ids, cut(topk!.ids, counts));
        // Another library's exp and log may differ in the last bit.
        for (const [i, logprobs] of cut(topk!.logprobs, counts).entries()) {
          for (const [j, logprob] of logprobs.entries())
            assert.ok(Math.abs(row.topk.logprobs[i][j] - logprob) <= (logprobDtype.startsWith('uint') ? 1e-6 : 0));
        }
        assert.deepEqual(row.topk.log_z, cut(topk!.logZ, Array(counts.length).fill(3)));
        assert.deepEqual(row.sampled.ids, cut(sampled!.ids, [...sampled!.counts]));
        assert.deepEqual(row.sampled.draws, cut(sampled!.draws, [...sampled!.counts]));
      }
    }),
  );
}

test('a cache that pyarrow wrote is read and verified', unless(skip), () =>
  inFolder(async (folder) => {
    await mkdir(folder);
    runPython('write_cache.py', folder);
    assert.deepEqual((await verifyCache(folder)).problems, []);
    const cache = await openCache(folder);
    assert.deepEqual(cache.rowIds, ['a', 'b']);
    assert.equal(cache.description.teacher?.name, "Jürgen's teacher");
    const { row, positions, topk, hidden } = await cache.readRow(cache.indexOf('a'));
    assert.deepEqual(row, {
      id: 'a',
      inputIds: Int32Array.of(5, 6, 7),
      lossMask: Uint8Array.of(0, 0, 1),
      task: 'math',
      answer: '7',
    });
    assert.deepEqual(positions, Int32Array.of(1));
    assert.deepEqual(topk, {
      counts: Int32Array.of(2),
      ids: Int32Array.of(3, 1),
      logprobs: Float32Array.of(-0.5, -1.5),
      logZ: Float32Array.of(0, 1.1),
    });
    const states = dequantiseHidden(hidden!.get('final')!, await cache.hiddenScale('final'));
    assert.deepEqual(states, Float32Array.of(0.5, -2, 31.75));
    assert.deepEqual((await cache.readOutputMatrix()).slice(3, 6), Float32Array.of(1, 1, -1));
    await cache.close();
  }),
);
