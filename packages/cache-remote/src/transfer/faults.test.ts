import assert from 'node:assert/strict';
import { cp, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { makeTemporaryFolder, startNode } from '@stillhouse/testing';
import { afterAll, beforeAll, test } from 'vitest';
import { pullCache, pushCache } from '../index.ts';
import { type Fault, startFaultProxy } from '../testing/fault-proxy.ts';
import { serveFolder } from '../testing/file-server.ts';
import { QUICK } from '../testing/policy.ts';
import { buildScratchCache } from '../testing/scratch-cache.ts';
import { readTree } from '../testing/tree.ts';

const policy = QUICK;
let folder = '';
/** A cache with a file of 2.6 MB, in a folder that is a remote. */
let remote = '';
let cache = '';
let large = '';
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'stillhouse-remote-'));
  [cache, remote] = [join(folder, 'cache'), join(folder, 'remote')];
  await buildScratchCache(cache, { rows: 3, rowsPerShard: 3, tokens: 110, hiddenSize: 2048 });
  await pushCache(cache, remote, { policy });
  const blobs = (await readdir(join(remote, 'blobs/sha256'), { recursive: true })).filter((name) => name.length > 60);
  for (const name of blobs) if ((await stat(join(remote, 'blobs/sha256', name))).size > 2e6) large = name.slice(-64);
  assert.notEqual(large, '');
});
afterAll(() => rm(folder, { recursive: true, force: true }));

/** Pulls through a proxy with faults and checks that what arrives is the cache. */
async function pullThrough(
  t: Parameters<typeof startFaultProxy>[0],
  plan: (nth: number, path: string) => Fault | undefined,
  options: { readonly ranges?: boolean } = {},
) {
  const server = await serveFolder(t, remote, options);
  const proxy = await startFaultProxy(t, server.url, ({ nth, path }) => plan(nth, path));
  const target = join(await makeTemporaryFolder(t), 'pulled');
  const result = await pullCache(proxy.url, target, { policy });
  assert.deepEqual(await readTree(target, ['.pulled.json']), await readTree(cache));
  return { result, proxy, server };
}

test('answers of 5xx and broken connections, on every file, twice each', async (t) => {
  for (const fault of [{ kind: 'status', status: 503 }, { kind: 'status', status: 429 }, { kind: 'reset' }] as const) {
    const { proxy } = await pullThrough(t, (nth) => (nth < 2 ? fault : undefined));
    assert.ok(proxy.faults() >= 10, `${proxy.faults()}`);
  }
});

test('bodies that end early: the rest is asked for, not the whole', async (t) => {
  const cuts = [300_000, 700_000, 900_001];
  const { server } = await pullThrough(t, (nth, path) =>
    path.endsWith(large) && nth < cuts.length ? { kind: 'truncate', afterBytes: cuts[nth]! } : undefined,
  );
  const lines = server.requests.filter((line) => line.includes(large));
  assert.equal(lines.length, 4);
  let had = 0;
  for (const [i, line] of lines.entries()) {
    assert.equal(line, `GET /blobs/sha256/${large.slice(0, 2)}/${large}${had === 0 ? '' : ` bytes=${had}-`}`);
    had += cuts[i] ?? 0;
  }
  // Every file, index and manifest included, cut after its first byte.
  await pullThrough(t, (nth) => (nth < 2 ? { kind: 'truncate', afterBytes: 1 } : undefined));
});

test('a server without ranges: the file begins anew and is right', async (t) => {
  const { server } = await pullThrough(
    t,
    (nth, path) => (path.endsWith(large) && nth < 2 ? { kind: 'truncate', afterBytes: 500_000 } : undefined),
    { ranges: false },
  );
  assert.equal(server.requests.filter((line) => line.includes(large)).length, 3);
});

test('a slow drip is broken off and continued', async (t) => {
  const { proxy } = await pullThrough(t, (nth, path) =>
    path.endsWith(large) && nth < 2 ? { kind: 'drip', afterBytes: 400_000 } : undefined,
  );
  const lines = proxy.requests.filter((line) => line.includes(large));
  assert.equal(lines.length, 3);
  const offsets = lines.map((line) => Number(/bytes=(\d+)-/.exec(line)?.[1] ?? 0));
  assert.ok(offsets[1]! >= 400_000 && offsets[2]! >= 800_000, String(offsets));
});

test('flipped bytes are fetched again; if they stay, the error names the file and nothing is left behind', async (t) => {
  const { proxy } = await pullThrough(t, (nth, path) =>
    path.includes('/blobs/') && nth < 2 ? { kind: 'flip', atByte: 100 } : undefined,
  );
  // The tokenizer's file is shorter than that.
  assert.ok(proxy.requests.filter((line) => line.includes(large)).length === 3);
  const server = await serveFolder(t, remote);
  const broken = await startFaultProxy(t, server.url, ({ path }) =>
    path.endsWith(large) ? { kind: 'flip', atByte: 1_000_000 } : undefined,
  );
  const target = join(await makeTemporaryFolder(t), 'pulled');
  await assert.rejects(pullCache(broken.url, target, { policy }), {
    code: 'REMOTE_FILE_DAMAGED',
    message: /shards\/00000\.hidden-final\.arrow: the content came wrong 3 times.*sha256/,
  });
  assert.equal(broken.requests.filter((line) => line.includes(large)).length, 3);
  assert.equal(await stat(join(target, 'manifest.json')).catch(() => undefined), undefined);
  assert.equal((await readdir(join(target, '.pull'))).includes(large), false);
  // A manifest with a flipped bit has another digest.
  const lying = await startFaultProxy(t, server.url, ({ path }) =>
    path.endsWith('manifest.json') ? { kind: 'flip', atByte: 700 } : undefined,
  );
  await assert.rejects(pullCache(lying.url, target, { policy }), { code: 'CACHE_MANIFEST_INVALID' });
});

test('a server that stays down: the error says what happened and that the same command goes on', async (t) => {
  const server = await serveFolder(t, remote);
  const down = await startFaultProxy(t, server.url, ({ path }) =>
    path.endsWith(large) ? { kind: 'status', status: 502 } : undefined,
  );
  const target = join(await makeTemporaryFolder(t), 'pulled');
  await assert.rejects(pullCache(down.url, target, { policy }), {
    code: 'REMOTE_TRANSFER_FAILED',
    message:
      /00000\.hidden-final\.arrow: the transfer failed 6 times, at last: the server answered 502\..*same command/,
  });
  await assert.rejects(pullCache('http://127.0.0.1:9/nothing', target, { policy }), { code: 'REMOTE_TRANSFER_FAILED' });
  const denied = await startFaultProxy(t, server.url, () => ({ kind: 'status', status: 403 }));
  await assert.rejects(pullCache(denied.url, target, { policy }), { code: 'REMOTE_ACCESS_DENIED' });
  assert.equal(denied.requests.length, 1);
  const odd = await startFaultProxy(t, server.url, () => ({ kind: 'status', status: 418 }));
  await assert.rejects(pullCache(odd.url, target, { policy }), { code: 'REMOTE_REFUSED', message: /418/ });
});

test('a file in the remote that is longer or shorter than its size is wrong content', async (t) => {
  const other = join(await makeTemporaryFolder(t), 'remote');
  await cp(remote, other, { recursive: true });
  const path = join(other, 'blobs/sha256', large.slice(0, 2), large);
  const bytes = await readFile(path);
  const { url } = await serveFolder(t, other);
  for (const content of [Buffer.concat([bytes, Buffer.alloc(10_000_000)]), bytes.subarray(0, 1000)]) {
    await writeFile(path, content);
    const target = join(await makeTemporaryFolder(t), 'pulled');
    await assert.rejects(pullCache(url, target, { policy }), {
      code: 'REMOTE_FILE_DAMAGED',
      message: /bytes instead of/,
    });
  }
});

test('a pull that is killed goes on where it was, also after bytes on the disk went bad', async (t) => {
  const script = fileURLToPath(new URL('../testing/pull-process.ts', import.meta.url));
  const server = await serveFolder(t, remote);
  // So slow that there is time to kill.
  const slow = await startFaultProxy(t, server.url, ({ path, nth }) =>
    path.endsWith(large) && nth === 0 ? { kind: 'drip', afterBytes: 1_500_000 } : undefined,
  );
  const home = await makeTemporaryFolder(t);
  for (const damage of [false, true]) {
    const target = join(home, damage ? 'bad' : 'good');
    const patient = { ...policy, windowMs: 60_000 };
    const proxy = damage
      ? await startFaultProxy(t, server.url, ({ path, nth }) =>
          path.endsWith(large) && nth === 0 ? { kind: 'drip', afterBytes: 1_500_000 } : undefined,
        )
      : slow;
    const { child, finished } = startNode([script, proxy.url, target, JSON.stringify(patient)]);
    let text = '';
    child.stderr!.on('data', (part: string) => {
      text += part;
      const bytes = Number(/bytes (\d+)\n[^\n]*$/.exec(text)?.[1] ?? 0);
      if (bytes > 1_500_000) child.kill('SIGKILL');
    });
    assert.equal((await finished).signal, 'SIGKILL');
    assert.equal(await stat(join(target, 'manifest.json')).catch(() => undefined), undefined);
    const staged = join(target, '.pull', large);
    const { size } = await stat(staged);
    assert.ok(size >= 1_000_000, String(size));
    if (damage) {
      const bytes = await readFile(staged);
      bytes[1000]! ^= 1;
      await writeFile(staged, bytes);
    }
    const asked = server.requests.length;
    const again = startNode([script, proxy.url, target, JSON.stringify(policy)]);
    const { code, stdout, stderr } = await again.finished;
    assert.equal(code, 0, stderr);
    assert.equal(JSON.parse(stdout).folder, target);
    assert.deepEqual(await readTree(target, ['.pulled.json']), await readTree(cache));
    const lines = server.requests.slice(asked).filter((line) => line.includes(large));
    const [first, second] = lines.map((line) => Number(/bytes=(\d+)-/.exec(line)?.[1] ?? 0));
    assert.ok(first! >= size, `${lines}`);
    assert.equal(second, damage ? 0 : undefined);
  }
});

test('two pulls into one folder: the second is refused', async (t) => {
  const server = await serveFolder(t, remote);
  const slow = await startFaultProxy(t, server.url, ({ path, nth }) =>
    path.endsWith(large) && nth === 0 ? { kind: 'drip', afterBytes: 10 } : undefined,
  );
  const target = join(await makeTemporaryFolder(t), 'pulled');
  await mkdir(target);
  const controller = new AbortController();
  const first = pullCache(slow.url, target, { policy: { ...policy, windowMs: 60_000 }, signal: controller.signal });
  first.catch(() => {});
  while ((await stat(join(target, '.lock')).catch(() => undefined)) === undefined) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  await assert.rejects(pullCache(server.url, target, { policy }), { code: 'CACHE_IN_USE' });
  controller.abort(new Error('enough'));
  await assert.rejects(first, /enough/);
  await pullCache(server.url, target, { policy });
});
