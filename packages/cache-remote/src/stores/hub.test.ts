import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openCache, readManifest } from '@stillhouse/teacher-cache';
import { makeTemporaryFolder } from '@stillhouse/testing';
import { afterAll, afterEach, beforeAll, test } from 'vitest';
import { listRemote, openRemoteCache, pullCache, pushCache } from '../index.ts';
import { startFaultProxy } from '../testing/fault-proxy.ts';
import { HUB_TOKEN, type HubServer, startHub } from '../testing/hub-server.ts';
import { QUICK } from '../testing/policy.ts';
import { buildScratchCache } from '../testing/scratch-cache.ts';
import { readTree } from '../testing/tree.ts';

const policy = QUICK;
let folder = '';
let cache = '';
let digest = '';
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'stillhouse-hub-'));
  cache = join(folder, 'cache');
  await buildScratchCache(cache, { rows: 4, rowsPerShard: 2, tokens: 60, hiddenSize: 1024 });
  digest = (await readManifest(cache)).digest;
});
afterAll(() => rm(folder, { recursive: true, force: true }));

const names = ['HF_ENDPOINT', 'HF_TOKEN', 'HF_TOKEN_PATH', 'HF_HOME'] as const;
const saved = names.map((name) => process.env[name]);
const setHub = (hub: Pick<HubServer, 'url'>) =>
  Object.assign(process.env, { HF_ENDPOINT: hub.url, HF_TOKEN: HUB_TOKEN });
afterEach(() => {
  for (const [i, name] of names.entries()) {
    if (saved[i] === undefined) delete process.env[name];
    else process.env[name] = saved[i];
  }
});

test('hub: push, list, pull and stream through the official client; nothing twice', async (t) => {
  const hub = await startHub(t);
  setHub(hub);
  const remote = 'hf://datasets/team/caches/distil#gsm8k';
  const first = await pushCache(cache, remote, { policy });
  assert.deepEqual([first.digest, first.filesPresent], [digest, 0]);
  // Contents first, manifest and name in a commit of their own.
  assert.deepEqual(hub.commits, [`${first.filesSent} files of a cache`, `cache gsm8k ${digest.slice(0, 12)}`]);
  const uploads = () => hub.requests.filter((line) => line.startsWith('PUT /lfs/')).length;
  const sent = uploads();
  assert.ok(sent > first.filesSent, 'large contents come in parts');
  const again = await pushCache(cache, remote, { policy });
  assert.deepEqual([again.filesSent, again.formerDigest, uploads()], [0, digest, sent]);
  const [listed] = await listRemote('hf://datasets/team/caches/distil', { policy });
  assert.deepEqual([listed!.digest, listed!.names], [digest, ['gsm8k']]);
  assert.deepEqual(await listRemote('hf://datasets/team/caches/elsewhere', { policy }), []);
  const home = await makeTemporaryFolder(t);
  const part = await pullCache(remote, join(home, 'pulled'), { policy, groups: ['topk'] });
  assert.equal(part.filesFetched, 5);
  await pullCache(remote, join(home, 'pulled'), { policy });
  assert.deepEqual(await readTree(join(home, 'pulled'), ['.pulled.json']), await readTree(cache));
  const streamed = await openRemoteCache(remote, { policy, cacheFolder: join(home, 'local') });
  const local = await openCache(cache);
  for (let row = 0; row < 4; row++) assert.deepEqual(await streamed.readRow(row), await local.readRow(row));
  await streamed.close();
  await local.close();
});

test('hub: faults pass; a push that failed in the middle sends the rest later', async (t) => {
  const hub = await startHub(t);
  const proxy = await startFaultProxy(t, hub.url, ({ nth, path }) => {
    if (nth === 0) return { kind: 'status', status: 503 };
    if (nth === 1) return { kind: 'reset' };
    return path.includes('/resolve/') && path.includes('/blobs/') && nth === 3
      ? { kind: 'truncate', afterBytes: 1000 }
      : path.includes('/resolve/') && path.includes('/blobs/') && nth === 5
        ? { kind: 'flip', atByte: 100 }
        : undefined;
  });
  setHub(proxy);
  await pushCache(cache, 'hf://datasets/team/caches', { policy });
  const target = join(await makeTemporaryFolder(t), 'pulled');
  await pullCache('hf://datasets/team/caches', target, { policy });
  assert.deepEqual(await readTree(target, ['.pulled.json']), await readTree(cache));

  const other = await startHub(t);
  // LFS links lead to the server itself, so the fault is where the commit is made.
  const failing = await startFaultProxy(t, other.url, ({ path }) =>
    path.includes('/commit/') ? { kind: 'status', status: 500 } : undefined,
  );
  setHub(failing);
  await assert.rejects(pushCache(cache, 'hf://datasets/team/caches', { policy }), { code: 'REMOTE_TRANSFER_FAILED' });
  setHub(other);
  assert.deepEqual(await listRemote('hf://datasets/team/caches', { policy }), []);
  const uploads = other.requests.filter((line) => line.startsWith('PUT /lfs/')).length;
  await pushCache(cache, 'hf://datasets/team/caches', { policy });
  assert.equal(other.requests.filter((line) => line.startsWith('PUT /lfs/')).length, uploads);
});

test('hub: tokens from the environment or the standard file, never seen; what is missing is said', async (t) => {
  const hub = await startHub(t);
  const home = await makeTemporaryFolder(t);
  setHub(hub);
  await pushCache(cache, 'hf://datasets/team/caches', { policy });
  delete process.env.HF_TOKEN;
  process.env.HF_HOME = home;
  await assert.rejects(listRemote('hf://datasets/team/caches', { policy }), { code: 'REMOTE_ACCESS_DENIED' });
  await writeFile(join(home, 'token'), `${HUB_TOKEN}\n`);
  assert.equal((await listRemote('hf://datasets/team/caches', { policy })).length, 1);
  await writeFile(join(home, 'token'), 'my password 123');
  await assert.rejects(listRemote('hf://datasets/team/caches', { policy }), (error: Error & { code: string }) => {
    assert.equal(error.code, 'REMOTE_CREDENTIALS_INVALID');
    assert.ok(!error.message.includes('password'));
    return true;
  });
  process.env.HF_TOKEN = HUB_TOKEN;
  await assert.rejects(pushCache(cache, 'hf://datasets/team/other', { policy }), {
    code: 'REMOTE_NOT_FOUND',
    message: /data set repository/,
  });
  await assert.rejects(listRemote('hf://datasets/team/caches@v2', { policy }), { code: 'REMOTE_NOT_FOUND' });
  const down = await startFaultProxy(t, hub.url, () => ({ kind: 'reset' }));
  process.env.HF_ENDPOINT = down.url;
  await assert.rejects(
    pullCache('hf://datasets/team/caches', join(home, 'x'), { policy }),
    (error: Error & { code: string }) => {
      assert.equal(error.code, 'REMOTE_TRANSFER_FAILED');
      assert.ok(!`${error.stack}${JSON.stringify(error)}`.includes('hf_token'));
      return true;
    },
  );
  process.env.HF_ENDPOINT = hub.url;
  await pullCache('hf://datasets/team/caches', join(home, 'pulled'), { policy });
  for (const name of await readdir(join(home, 'pulled'), { recursive: true, withFileTypes: true })) {
    if (name.isFile()) assert.ok(!(await readFile(join(name.parentPath, name.name))).includes('hf_token'));
  }
});
