import assert from 'node:assert/strict';
import { truncate } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'vitest';
import { listFiles } from '../format/manifest.ts';
import { describeSize, measureKeptBatches, openCache, readManifest } from '../index.ts';
import { buildRandomCache, type RandomCacheShape } from '../testing/random-cache.ts';
import { inFolder } from '../testing/scratch-folder.ts';
import { limitKeptBatches } from './kept-batches.ts';

const shape: RandomCacheShape = {
  seed: 3,
  rows: 20,
  rowsPerShard: 5,
  maxTokens: 9,
  vocabSize: 30,
  hiddenSize: 4,
  k: 5,
};

test('a small cache is read once: rows that were read come again without its files', () =>
  inFolder(async (folder) => {
    await buildRandomCache(folder, shape);
    const whole = await openCache(folder);
    const nothing = await openCache(folder, { batchCacheBytes: 1 });
    const readAll = async (cache: typeof whole) => {
      const ids: string[] = [];
      for await (const { row } of cache.rows()) ids.push(row.id);
      return ids;
    };
    const ids = await readAll(whole);
    assert.deepEqual(await readAll(nothing), ids);
    // Emptied in place: a file that is open would stay readable after its removal.
    for (const { file } of listFiles(whole.manifest)) await truncate(join(folder, file.path), 0);
    assert.deepEqual(await readAll(whole), ids);
    await assert.rejects(readAll(nothing), { code: 'CACHE_FILE_UNREADABLE' });
    await Promise.all([whole.close(), nothing.close()]);
  }));

test('what is kept is what is read, up to 256 MiB of a cache that has no more, else up to 64', () =>
  inFolder(async (folder) => {
    await buildRandomCache(folder, shape);
    const manifest = await readManifest(folder);
    const sizes = new Map(describeSize(manifest).groups.map(({ group, sizeBytes }) => [group, sizeBytes]));
    assert.equal(limitKeptBatches(manifest), 256 * 2 ** 20);
    assert.equal(measureKeptBatches(manifest, {}), sizes.get('rows'));
    assert.equal(
      measureKeptBatches(manifest, { topk: true, hidden: ['final'] }),
      sizes.get('rows')! + sizes.get('topk')! + sizes.get('hidden-final')!,
    );
    const [first, ...others] = manifest.shards;
    const { topk, ...files } = first!.files;
    const large = {
      ...manifest,
      shards: [{ ...first!, files: { ...files, topk: { ...topk!, sizeBytes: 257 * 2 ** 20 } } }, ...others],
    };
    assert.equal(limitKeptBatches(large), 64 * 2 ** 20);
    assert.equal(measureKeptBatches(large, { topk: true }), 64 * 2 ** 20);
    assert.equal(measureKeptBatches(large, {}), sizes.get('rows'));
    const head = { ...manifest, outputMatrix: { ...manifest.outputMatrix!, sizeBytes: 2 ** 30 } };
    assert.equal(limitKeptBatches(head), 256 * 2 ** 20, 'the output matrix is not among the batches');
  }));
