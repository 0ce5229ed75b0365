import assert from 'node:assert/strict';
import { readdirSync, statSync } from 'node:fs';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type LabelledRow, openCache, type TeacherCache } from '@stillhouse/teacher-cache';
import { makeTemporaryFolder } from '@stillhouse/testing';
import { afterAll, beforeAll, test } from 'vitest';
import { openCacheAt, openRemoteCache, pushCache } from '../index.ts';
import { startFaultProxy } from '../testing/fault-proxy.ts';
import { serveFolder } from '../testing/file-server.ts';
import { QUICK } from '../testing/policy.ts';
import { buildScratchCache } from '../testing/scratch-cache.ts';

const policy = QUICK;
let folder = '';
let remote = '';
let local: TeacherCache;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'stillhouse-stream-'));
  remote = join(folder, 'remote');
  await buildScratchCache(join(folder, 'cache'), { rows: 24, rowsPerShard: 2, tokens: 40, hiddenSize: 256 });
  await pushCache(join(folder, 'cache'), remote, { policy });
  local = await openCache(join(folder, 'cache'));
});
afterAll(async () => {
  await local.close();
  await rm(folder, { recursive: true, force: true });
});

async function requireSameRow(row: LabelledRow, index: number): Promise<void> {
  assert.deepEqual(row, await local.readRow(index));
}

/** At once, so that nothing comes or goes in between. */
function measure(cacheFolder: string): number {
  let sizeBytes = 0;
  for (const name of readdirSync(join(cacheFolder, 'blobs'), { recursive: true, encoding: 'utf8' })) {
    const entry = statSync(join(cacheFolder, 'blobs', name), { throwIfNoEntry: false });
    if (entry?.isFile()) sizeBytes += entry.size;
  }
  return sizeBytes;
}

const order = (length: number) => Array.from({ length }, (_, i) => (i * 7) % 24);

test('a cache is read where it is, in any order, and the folder on this machine never exceeds its bound', async (t) => {
  const server = await serveFolder(t, remote);
  const cacheFolder = await makeTemporaryFolder(t);
  const cacheBytes = 300_000;
  const cache = await openRemoteCache(server.url, { policy, cacheFolder, cacheBytes, batchCacheBytes: 1 });
  t.onTestFinished(() => cache.close());
  assert.deepEqual([cache.digest, cache.rowCount, cache.folder], [local.digest, 24, `${server.url}#main`]);
  let most = 0;
  const watch = setInterval(() => {
    most = Math.max(most, measure(cacheFolder));
  }, 5);
  for (const index of order(48)) await requireSameRow(await cache.readRow(index), index);
  // Several at once compete for the room.
  await Promise.all(order(24).map(async (index) => requireSameRow(await cache.readRow(index), index)));
  assert.deepEqual(await cache.readOutputMatrix(), await local.readOutputMatrix());
  clearInterval(watch);
  most = Math.max(most, measure(cacheFolder));
  assert.ok(most > 100_000 && most <= cacheBytes, String(most));
  // It did not all fit, so some came more than once.
  assert.ok(server.requests.filter((line) => line.includes('/blobs/')).length > 50);
  assert.equal(await readFile(join(cache.tokenizerFolder!, 'tokenizer.json'), 'utf8'), '{"model":{}}');
});

test('with room for all, each file comes once, also for the next process; only what is read comes', async (t) => {
  const server = await serveFolder(t, remote);
  const cacheFolder = await makeTemporaryFolder(t);
  const count = () => server.requests.filter((line) => line.includes('/blobs/')).length;
  const first = await openRemoteCache(server.url, { policy, cacheFolder });
  for (const index of order(24)) await first.readRow(index, { topk: true });
  assert.equal(count(), 12 + 12 + 1);
  for (const index of order(24)) await requireSameRow(await first.readRow(index), index);
  await first.close();
  assert.equal(count(), 12 * 3 + 1);
  const second = await openRemoteCache(server.url, { policy, cacheFolder });
  for (const index of order(24)) await requireSameRow(await second.readRow(index), index);
  await second.close();
  assert.equal(count(), 12 * 3 + 1);
});

test('what went bad on this machine is fetched again', async (t) => {
  const server = await serveFolder(t, remote);
  const cacheFolder = await makeTemporaryFolder(t);
  const first = await openRemoteCache(server.url, { policy, cacheFolder });
  for (const index of order(24)) await first.readRow(index);
  await first.close();
  const blobs = (await readdir(join(cacheFolder, 'blobs/sha256'), { recursive: true })).filter(
    (name) => name.length > 60,
  );
  for (const name of blobs) {
    const path = join(cacheFolder, 'blobs/sha256', name);
    const bytes = await readFile(path);
    bytes[bytes.length >> 1]! ^= 1;
    await writeFile(path, bytes);
  }
  const before = server.requests.length;
  const second = await openRemoteCache(server.url, { policy, cacheFolder });
  for (const index of order(24)) await requireSameRow(await second.readRow(index), index);
  await second.close();
  assert.equal(server.requests.slice(before).filter((line) => line.includes('/blobs/')).length, 36);
});

test('two readers share a folder; what one takes away the other fetches again', async (t) => {
  const server = await serveFolder(t, remote);
  const cacheFolder = await makeTemporaryFolder(t);
  const open = () => openRemoteCache(server.url, { policy, cacheFolder, cacheBytes: 150_000, batchCacheBytes: 1 });
  const [a, b] = [await open(), await open()];
  for (const index of order(48)) {
    await Promise.all(
      [a, b].map(async (one, i) => {
        const at = (index + 5 * i) % 24;
        await requireSameRow(await one.readRow(at), at);
      }),
    );
  }
  await a.close();
  await b.close();
});

test('faults while streaming: passing ones are not seen, lasting ones are named', async (t) => {
  const server = await serveFolder(t, remote);
  const faulty = await startFaultProxy(t, server.url, ({ nth, path }) => {
    if (nth === 0) return { kind: 'status', status: 500 };
    if (nth === 1) return { kind: 'truncate', afterBytes: 10 };
    return nth === 2 && path.includes('/blobs/') ? { kind: 'flip', atByte: 9 } : undefined;
  });
  const cache = await openRemoteCache(faulty.url, { policy, cacheFolder: await makeTemporaryFolder(t) });
  for (const index of order(24)) await requireSameRow(await cache.readRow(index), index);
  await cache.close();
  const bad = await startFaultProxy(t, server.url, ({ path }) => {
    const { sha256 } = local.manifest.shards[3]!.files['hidden-final']!;
    return path.endsWith(sha256) ? { kind: 'flip', atByte: 999 } : undefined;
  });
  const lasting = await openRemoteCache(bad.url, { policy, cacheFolder: await makeTemporaryFolder(t) });
  await requireSameRow(await lasting.readRow(0), 0);
  await assert.rejects(lasting.readRow(6), { code: 'REMOTE_FILE_DAMAGED', message: /00003\.hidden-final/ });
  await requireSameRow(await lasting.readRow(8), 8);
  await lasting.close();
});

test('a bound that one file exceeds, a bound that is none; plain folders open as ever', async (t) => {
  const cacheFolder = await makeTemporaryFolder(t);
  const cache = await openRemoteCache(`file://${remote}`, { policy, cacheFolder, cacheBytes: 20_000 });
  await assert.rejects(cache.readRow(0, { hidden: ['final'] }), {
    code: 'STREAM_FILE_TOO_LARGE',
    message: /00000\.hidden-final.*at most 20000 bytes.*STILLHOUSE_CACHE_BYTES/,
  });
  await cache.readRow(0, { topk: true });
  await cache.close();
  process.env.STILLHOUSE_CACHE_BYTES = 'plenty';
  t.onTestFinished(() => {
    delete process.env.STILLHOUSE_CACHE_BYTES;
  });
  await assert.rejects(openRemoteCache(`file://${remote}`, { cacheFolder }), { code: 'STREAM_BOUND_INVALID' });
  const plain = await openCacheAt(join(folder, 'cache'));
  assert.equal(plain.folder, join(folder, 'cache'));
  await plain.close();
  await assert.rejects(openCacheAt(`file://${remote}#other`, { policy, cacheFolder, cacheBytes: 1e6 }), {
    code: 'REMOTE_CACHE_UNKNOWN',
  });
});
