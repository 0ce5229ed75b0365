import assert from 'node:assert/strict';
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  CreateMultipartUploadCommand,
  ListMultipartUploadsCommand,
  S3Client,
  UploadPartCommand,
} from '@aws-sdk/client-s3';
import { readManifest } from '@stillhouse/teacher-cache';
import { makeTemporaryFolder, runNode, startNode, unless } from '@stillhouse/testing';
import { afterAll, beforeAll, describe, test } from 'vitest';
import { listRemote, pullCache, pushCache } from '../index.ts';
import { type Fault, startFaultProxy } from '../testing/fault-proxy.ts';
import { findMoto, startMoto } from '../testing/moto-server.ts';
import { QUICK } from '../testing/policy.ts';
import { buildScratchCache } from '../testing/scratch-cache.ts';
import { readTree } from '../testing/tree.ts';

const moto = findMoto();
const skip = 'why' in moto ? moto.why : false;
if ('why' in moto) console.error(`S3 tests are skipped: ${moto.why}`);

// The server is slow when the machine is busy.
const policy = { ...QUICK, windowMs: 5000 };
const SECRET = 'a-secret-that-must-not-be-seen';
const cleanups: (() => unknown)[] = [];
let url = '';
let folder = '';
/** One file of it takes three parts. */
let cache = '';
let digest = '';

/** Endpoint and credentials come from the environment alone. */
function setEnvironment(endpoint: string): void {
  Object.assign(process.env, {
    AWS_ENDPOINT_URL: endpoint,
    AWS_ACCESS_KEY_ID: 'AKIATESTTESTTESTTEST',
    AWS_SECRET_ACCESS_KEY: SECRET,
    AWS_REGION: 'eu-central-1',
    AWS_EC2_METADATA_DISABLED: 'true',
  });
}

beforeAll(async () => {
  if (skip !== false || 'why' in moto) return;
  folder = await mkdtemp(join(tmpdir(), 'stillhouse-s3-'));
  cache = join(folder, 'cache');
  await buildScratchCache(cache, { rows: 3, rowsPerShard: 3, tokens: 802, hiddenSize: 2048 });
  digest = (await readManifest(cache)).digest;
  url = await startMoto({ onTestFinished: (work) => cleanups.push(work) }, moto.python);
  setEnvironment(url);
});
afterAll(async () => {
  for (const work of cleanups) await work();
  if (folder !== '') await rm(folder, { recursive: true, force: true });
});

test('S3: push, list, pull, nothing twice, large files in parts', unless(skip), async (t) => {
  const first = await pushCache(cache, 's3://caches/team/one#gsm8k', { policy });
  assert.deepEqual([first.digest, first.filesPresent], [digest, 0]);
  const again = await pushCache(cache, 's3://caches/team/one#gsm8k', { policy });
  assert.deepEqual([again.filesSent, again.formerDigest], [0, digest]);
  const [listed] = await listRemote('s3://caches/team/one', { policy });
  assert.deepEqual([listed!.digest, listed!.names], [digest, ['gsm8k']]);
  const target = join(await makeTemporaryFolder(t), 'pulled');
  await pullCache('s3://caches/team/one#gsm8k', target, { policy });
  assert.deepEqual(await readTree(target, ['.pulled.json']), await readTree(cache));
  assert.deepEqual(await listRemote('s3://caches/empty', { policy }), []);
});

describe('S3: 5xx, resets, truncation, drip and flipped bytes, both ways', unless(skip), () => {
  const faults: readonly (readonly [string, (method: string, path: string, nth: number) => Fault | undefined])[] = [
    ['5xx', (_, __, nth) => (nth < 2 ? { kind: 'status', status: 503 } : undefined)],
    ['reset', (_, __, nth) => (nth < 2 ? { kind: 'reset' } : undefined)],
    [
      'truncate',
      (method, path, nth) =>
        method === 'GET' && path.includes('/blobs/') && nth < 2
          ? { kind: 'truncate', afterBytes: 99 + nth }
          : undefined,
    ],
    [
      'drip',
      (method, path, nth) =>
        method === 'GET' && path.includes('/blobs/') && nth < 1 ? { kind: 'drip', afterBytes: 150 } : undefined,
    ],
    [
      'flip',
      (method, path, nth) =>
        path.includes('/blobs/') && nth < 2
          ? { kind: method === 'GET' ? 'flip' : 'flip-request', atByte: 50 }
          : undefined,
    ],
  ];
  for (const [name, plan] of faults) {
    test(name, async (t) => {
      const proxy = await startFaultProxy(t, url, ({ method, path, nth }) => plan(method, path, nth));
      setEnvironment(proxy.url);
      t.onTestFinished(() => setEnvironment(url));
      const remote = `s3://caches/faults-${name}`;
      const own = name === 'drip' ? { ...policy, windowMs: 1500 } : policy;
      await pushCache(cache, remote, { policy });
      const target = join(await makeTemporaryFolder(t), 'pulled');
      await pullCache(remote, target, { policy: own });
      assert.deepEqual(await readTree(target, ['.pulled.json']), await readTree(cache));
      assert.ok(proxy.faults() >= 5, String(proxy.faults()));
    });
  }
});

test('S3: an upload that is killed goes on; parts that are there are not sent again', unless(skip), async (t) => {
  const parts: string[] = [];
  let hold = true;
  const proxy = await startFaultProxy(t, url, ({ method, path }) => {
    if (method !== 'PUT' || !path.includes('partNumber')) return undefined;
    parts.push(new URL(path, url).searchParams.get('partNumber')!);
    // The first run is killed while its second part waits for an answer.
    return hold && parts.at(-1) === '2' ? { kind: 'drip', afterBytes: 0 } : undefined;
  });
  const script = fileURLToPath(new URL('../testing/push-process.ts', import.meta.url));
  const environment = { AWS_ENDPOINT_URL: proxy.url };
  const slow = { ...policy, windowMs: 60_000 };
  const args = [script, cache, 's3://caches/resumed'];
  const { child, finished } = startNode([...args, JSON.stringify(slow)], { env: environment });
  const watch = setInterval(() => {
    if (parts.includes('2')) child.kill('SIGKILL');
  }, 10);
  assert.equal((await finished).signal, 'SIGKILL');
  clearInterval(watch);
  assert.deepEqual(await listRemote('s3://caches/resumed', { policy }), []);
  hold = false;
  parts.length = 0;
  const { code, stderr } = await runNode([...args, JSON.stringify(policy)], { env: environment });
  assert.equal(code, 0, stderr);
  // The proxy holds only the answer back, so the storage has part 2 of the first run too.
  assert.ok(!parts.includes('1'), String(parts));
  assert.ok(parts.includes('3'), String(parts));
  const target = join(await makeTemporaryFolder(t), 'pulled');
  await pullCache('s3://caches/resumed', target, { policy });
  assert.deepEqual(await readTree(target, ['.pulled.json']), await readTree(cache));
});

test('S3: an upload begun with other bytes is finished with ours', unless(skip), async (t) => {
  const { shards } = await readManifest(cache);
  const { sha256 } = shards[0]!.files['hidden-final']!;
  const client = new S3Client({ endpoint: url, forcePathStyle: true });
  const key = { Bucket: 'caches', Key: `begun/blobs/sha256/${sha256.slice(0, 2)}/${sha256}` };
  const { UploadId } = await client.send(new CreateMultipartUploadCommand(key));
  await client.send(new UploadPartCommand({ ...key, UploadId, PartNumber: 1, Body: Buffer.alloc(8 << 20, 7) }));
  await pushCache(cache, 's3://caches/begun', { policy });
  const left = await client.send(new ListMultipartUploadsCommand({ Bucket: 'caches', Prefix: 'begun' }));
  assert.equal(left.Uploads?.length ?? 0, 0);
  const target = join(await makeTemporaryFolder(t), 'pulled');
  await pullCache('s3://caches/begun', target, { policy });
  assert.deepEqual(await readTree(target, ['.pulled.json']), await readTree(cache));
  client.destroy();
});

test('S3: a file that changes while it is sent is not published', unless(skip), async (t) => {
  const home = await makeTemporaryFolder(t);
  const other = join(home, 'cache');
  await cp(cache, other, { recursive: true });
  const path = join(other, 'shards/00000.hidden-final.arrow');
  const bytes = await readFile(path);
  let changed = false;
  const proxy = await startFaultProxy(t, url, ({ method, path: asked }) => {
    if (method === 'PUT' && asked.includes('partNumber=1') && !changed) {
      changed = true;
      bytes[bytes.length - 100_000]! ^= 1;
      void writeFile(path, bytes);
      return { kind: 'status', status: 500 };
    }
    return undefined;
  });
  setEnvironment(proxy.url);
  t.onTestFinished(() => setEnvironment(url));
  await assert.rejects(pushCache(other, 's3://caches/changed', { policy: { ...policy, firstDelayMs: 200 } }), {
    code: 'CACHE_FILE_DAMAGED',
    message: /not sent/,
  });
  assert.deepEqual(await listRemote('s3://caches/changed', { policy }), []);
});

test('S3: what is missing is said; credentials are never', unless(skip), async (t) => {
  const home = await makeTemporaryFolder(t);
  await assert.rejects(listRemote('s3://no-such-bucket/x', { policy }), {
    code: 'REMOTE_NOT_FOUND',
    message: /no such bucket/,
  });
  await assert.rejects(pushCache(cache, 's3://no-such-bucket/x', { policy }), { code: 'REMOTE_NOT_FOUND' });
  const denied = await startFaultProxy(t, url, () => ({ kind: 'status', status: 403 }));
  setEnvironment(denied.url);
  t.onTestFinished(() => setEnvironment(url));
  await assert.rejects(pullCache('s3://caches/team/one', join(home, 'x'), { policy }), {
    code: 'REMOTE_ACCESS_DENIED',
  });
  const script = fileURLToPath(new URL('../testing/pull-process.ts', import.meta.url));
  const bare = { AWS_ACCESS_KEY_ID: undefined, AWS_SECRET_ACCESS_KEY: undefined, HOME: home, AWS_ENDPOINT_URL: url };
  const without = await runNode([script, 's3://caches/team/one', join(home, 'x'), JSON.stringify(policy)], {
    env: bare,
  });
  assert.match(without.stderr, /REMOTE_CREDENTIALS_MISSING/);
  // From the standard file, by profile.
  await writeFile(
    join(home, 'credentials'),
    `[team]\naws_access_key_id = AKIAFILEFILEFILEFILE\naws_secret_access_key = ${SECRET}\n`,
  );
  await writeFile(join(home, 'config'), `[profile team]\nregion = eu-west-1\nendpoint_url = ${url}\n`);
  const files = {
    ...bare,
    AWS_ENDPOINT_URL: undefined,
    AWS_REGION: undefined,
    AWS_PROFILE: 'team',
    AWS_SHARED_CREDENTIALS_FILE: join(home, 'credentials'),
    AWS_CONFIG_FILE: join(home, 'config'),
  };
  const args = [script, 's3://caches/team/one#gsm8k', join(home, 'pulled'), JSON.stringify(policy)];
  const { code, stderr, stdout } = await runNode(args, { env: files });
  assert.equal(code, 0, stderr);
  for (const text of [stderr, stdout, without.stderr, JSON.stringify(await readTree(join(home, 'pulled')))]) {
    assert.ok(!text.includes(SECRET) && !text.includes('AKIA'), text);
  }
  for (const content of Object.values(await readTree(join(home, 'pulled')))) {
    assert.ok(!Buffer.from(content, 'base64').includes(SECRET));
  }
});
