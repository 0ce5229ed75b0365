import assert from 'node:assert/strict';
import { test } from 'vitest';
import {
  type CacheSize,
  describeSize,
  estimateCacheSize,
  openCache,
  openCacheWriter,
  readManifest,
  type TopKPolicy,
  verifyCache,
} from '../index.ts';
import { buildRandomCache, describeRandomCache, type RandomCacheShape, randomRow } from '../testing/random-cache.ts';
import { inFolder } from '../testing/scratch-folder.ts';

const shape: RandomCacheShape = {
  seed: 8,
  rows: 60,
  rowsPerShard: 30,
  maxTokens: 120,
  vocabSize: 400,
  hiddenSize: 64,
  k: 1,
};

test('the size that is foretold is the size that comes, group by group', async () => {
  for (const dtype of ['int8', 'float16', 'float32'] as const) {
    await inFolder(async (folder) => {
      const description = await buildRandomCache(folder, { ...shape, dtype });
      const actual = describeSize(await readManifest(folder));
      const { tokenCount: tokens, positionCount: positions } = actual;
      const estimate = estimateCacheSize(description, { rows: 60, tokens, positions });
      for (const { group, sizeBytes } of estimate.groups) {
        const got = actual.groups.find((one) => one.group === group)!.sizeBytes;
        assert.ok(
          Math.abs(got - sizeBytes) < 0.1 * got + 3000,
          `${dtype} ${group}: ${sizeBytes} foretold, ${got} came`,
        );
      }
      const hidden = actual.groups.find(({ group }) => group === 'hidden-final')!;
      assert.equal(hidden.bytesPerPosition, hidden.sizeBytes / positions);
      assert.equal(actual.groups.find(({ group }) => group === 'head')!.bytesPerPosition, null);
      assert.equal(
        actual.totalBytes,
        actual.groups.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
      );
    });
  }
});

test('labels of all packings take at most what is foretold, and what was measured where it was', async () => {
  const ragged: Partial<TopKPolicy> = { topP: 0.9, minK: 2, keepTarget: true, pinnedIds: [3] };
  for (const topk of [
    { packing: 'zstd' },
    { packing: 'zstd', logprobDtype: 'uint8', ...ragged },
    { packing: 'zstd', logprobDtype: 'float16' },
    ragged,
  ] as const) {
    await inFolder(async (folder) => {
      const sampled = { draws: 30, temperature: 1 };
      const description = await buildRandomCache(folder, { ...shape, maxTokens: 60, k: 40, topk, sampled });
      const actual = describeSize(await readManifest(folder));
      const { tokenCount: tokens, positionCount: positions } = actual;
      const estimate = estimateCacheSize(description, { rows: 60, tokens, positions });
      const sizeOf = (size: CacheSize, group: string) => size.groups.find((one) => one.group === group)!.sizeBytes;
      for (const group of ['topk', 'sampled']) {
        const share = sizeOf(actual, group) / sizeOf(estimate, group);
        assert.ok(share > 0.2 && share < 1.02, `${JSON.stringify(topk)} ${group}: ${share} of what was foretold`);
      }
      const measured = new Map(actual.groups.map(({ group, bytesPerPosition }) => [group, bytesPerPosition!]));
      const known = estimateCacheSize(description, { rows: 60, tokens, positions, measured });
      for (const group of ['topk', 'sampled']) {
        assert.ok(Math.abs(sizeOf(known, group) - sizeOf(actual, group)) < 1);
      }
    });
  }
});

test('a cache of rows alone needs no teacher', () =>
  inFolder(async (folder) => {
    const description = {
      ...describeRandomCache(shape),
      teacher: null,
      tokenizer: null,
      labels: { topk: null, hidden: null, head: false },
    };
    const writer = await openCacheWriter(folder, description, { totalRows: 2 });
    const rows = [0, 1].map((index) => randomRow({ ...shape, rows: 2 }, index, writer.description));
    await writer.writeShard(0, rows);
    await writer.finish();
    await writer.close();
    assert.deepEqual((await verifyCache(folder)).problems, []);
    const cache = await openCache(folder);
    assert.deepEqual(await cache.readRow(1), rows[1]);
    await assert.rejects(cache.readRow(1, { topk: true }), {
      code: 'CACHE_GROUP_ABSENT',
      message: /topk is not in this cache; got the groups rows/,
    });
    await cache.close();
    assert.deepEqual(
      estimateCacheSize(description, { rows: 1, tokens: 10, positions: 9 }).groups.map(({ group }) => group),
      ['rows'],
    );
  }));
