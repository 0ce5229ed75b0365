import assert from 'node:assert/strict';
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'vitest';
import { type CacheWriter, type LabelledRow, openCacheWriter, verifyCache } from '../index.ts';
import {
  buildRandomCache,
  describeRandomCache,
  prepareRandomCache,
  type RandomCacheShape,
  randomRow,
} from '../testing/random-cache.ts';
import { inFolder } from '../testing/scratch-folder.ts';

const shape: RandomCacheShape = {
  seed: 5,
  rows: 18,
  rowsPerShard: 6,
  maxTokens: 300,
  vocabSize: 400,
  // The states of a shard are more than a slot of memory: some files have a thread and others not.
  hiddenSize: 2048,
  k: 16,
  layers: ['final'],
  positions: 'all',
};

const rowsOf = (writer: CacheWriter, shard: number): LabelledRow[] => {
  const [first, end] = writer.shardRange(shard);
  return Array.from({ length: end - first }, (_, i) => randomRow(shape, first + i, writer.description));
};

/** Every file of a folder with its bytes. */
function readTree(folder: string): Map<string, string> {
  const files = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  const paths = files.map((entry) => join(entry.parentPath, entry.name)).sort();
  return new Map(paths.map((path) => [path.slice(folder.length), readFileSync(path).toString('base64')]));
}

async function openPrepared(folder: string): Promise<CacheWriter> {
  const writer = await openCacheWriter(folder, describeRandomCache(shape), { totalRows: shape.rows });
  await prepareRandomCache(writer);
  return writer;
}

/** The shards that the manifest has; each of their files must be there, and none under a temporary name. */
function listStored(folder: string): number {
  const manifest = JSON.parse(readFileSync(join(folder, 'manifest.json'), 'utf8'));
  const there = new Set(readdirSync(join(folder, 'shards')));
  for (const { files } of manifest.shards) {
    for (const { path } of Object.values<{ path: string }>(files)) {
      assert.ok(there.has(path.slice('shards/'.length)), `${path} is listed and not there`);
    }
  }
  return manifest.shards.length;
}

test('shards handed over at once are stored in order, with the bytes of shards that were waited for', () =>
  inFolder(async (folder) => {
    const [straight, overlapping] = [join(folder, 'straight'), join(folder, 'overlapping')];
    await buildRandomCache(straight, shape);
    const writer = await openPrepared(overlapping);
    const stored: number[] = [];
    await Promise.all(
      Array.from({ length: writer.shardCount }, async (_, shard) => {
        await writer.writeShard(shard, rowsOf(writer, shard));
        stored.push(shard);
        assert.ok(listStored(overlapping) > shard, `shard ${shard} is said to be stored and not in the manifest`);
      }),
    );
    assert.deepEqual(stored, [0, 1, 2]);
    const { size } = statSync(join(overlapping, 'shards', '00000.hidden-final.arrow'));
    assert.ok(size > 1 << 20, `${size} bytes have no thread`);
    await writer.finish();
    await writer.close();
    assert.deepEqual(readTree(overlapping), readTree(straight));
  }));

test('where a shard fails those after it do too, nothing of them stays, and all can be tried again', () =>
  inFolder(async (folder) => {
    const [straight, failing] = [join(folder, 'straight'), join(folder, 'failing')];
    await buildRandomCache(straight, shape);
    const writer = await openPrepared(failing);
    // The last row, when the others have been written already.
    const bad = rowsOf(writer, 1);
    const { topk } = bad.at(-1)!;
    bad[5] = { ...bad[5]!, topk: { ...topk!, ids: topk!.ids.map(() => 3) } };
    const writing = [
      writer.writeShard(0, rowsOf(writer, 0)),
      writer.writeShard(1, bad),
      writer.writeShard(2, rowsOf(writer, 2)),
    ];
    const unexpected = writer.writeShard(1, rowsOf(writer, 1));
    await assert.rejects(unexpected, { code: 'CACHE_SHARD_UNEXPECTED' });
    const outcomes = await Promise.allSettled(writing);
    assert.deepEqual(
      outcomes.map((outcome) => (outcome.status === 'fulfilled' ? 'stored' : outcome.reason.code)),
      ['stored', 'CACHE_ROW_INVALID', 'CACHE_ROW_INVALID'],
    );
    assert.equal(listStored(failing), 1);
    assert.deepEqual(
      (await readdir(join(failing, 'shards'))).filter((name) => !name.startsWith('00000.')),
      [],
    );
    assert.equal(writer.completedShards, 1);
    // Their ids are free again.
    for (let shard = 1; shard < writer.shardCount; shard++) await writer.writeShard(shard, rowsOf(writer, shard));
    await writer.finish();
    await writer.close();
    assert.deepEqual(readTree(failing), readTree(straight));
  }));

test('a row that is in a shard under way cannot come again', () =>
  inFolder(async (folder) => {
    const writer = await openPrepared(folder);
    const twice = rowsOf(writer, 1);
    twice[3] = { ...twice[3]!, row: { ...twice[3]!.row, id: rowsOf(writer, 0)[2]!.row.id } };
    const [first, second] = await Promise.allSettled([
      writer.writeShard(0, rowsOf(writer, 0)),
      writer.writeShard(1, twice),
    ]);
    assert.equal(first.status, 'fulfilled');
    assert.match(String((second as PromiseRejectedResult).reason), /another row has the same id/);
    await writer.close();
  }));

test('a writer is closed when what was handed over is stored', () =>
  inFolder(async (folder) => {
    const writer = await openPrepared(folder);
    const writing = [0, 1].map((shard) => writer.writeShard(shard, rowsOf(writer, shard)));
    await writer.close();
    assert.equal(listStored(folder), 2);
    await Promise.all(writing);
    assert.deepEqual((await verifyCache(folder)).problems, []);
    const resumed = await openPrepared(folder);
    assert.equal(resumed.completedShards, 2);
    await resumed.close();
  }));
