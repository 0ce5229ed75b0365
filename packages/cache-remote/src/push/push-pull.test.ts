import assert from 'node:assert/strict';
import { cp, mkdir, readdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { openCache, readManifest, verifyCache } from '@stillhouse/teacher-cache';
import { makeTemporaryFolder } from '@stillhouse/testing';
import { test } from 'vitest';
import { listRemote, pullCache, pushCache } from '../index.ts';
import { serveFolder } from '../testing/file-server.ts';
import { QUICK } from '../testing/policy.ts';
import { buildScratchCache } from '../testing/scratch-cache.ts';
import { readTree } from '../testing/tree.ts';

const policy = QUICK;

test('a folder as a remote: what is pushed is pulled, byte for byte, and nothing is sent twice', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const [cache, remote] = [join(folder, 'cache'), join(folder, 'remote')];
  await buildScratchCache(cache);
  const { digest } = await readManifest(cache);
  const first = await pushCache(cache, `${remote}#gsm8k`, { policy });
  assert.deepEqual([first.name, first.digest, first.formerDigest, first.filesPresent], ['gsm8k', digest, null, 0]);
  assert.equal(
    first.filesSent,
    (await readdir(join(remote, 'blobs/sha256'), { recursive: true })).filter((n) => n.length > 60).length,
  );
  const again = await pushCache(cache, `${remote}#gsm8k`, { policy });
  assert.deepEqual([again.filesSent, again.bytesSent, again.formerDigest], [0, 0, digest]);
  assert.equal(again.filesPresent, first.filesSent);

  const pulled = await pullCache(`file://${remote}#gsm8k`, join(folder, 'pulled'), { policy });
  assert.deepEqual([pulled.digest, pulled.filesFetched, pulled.omittedGroups], [digest, first.filesSent, []]);
  assert.deepEqual(await readTree(join(folder, 'pulled'), ['.pulled.json']), await readTree(cache));
  assert.deepEqual((await verifyCache(join(folder, 'pulled'))).problems, []);
  const twice = await pullCache(`${remote}#gsm8k`, join(folder, 'pulled'), { policy });
  assert.deepEqual([twice.filesFetched, twice.bytesFetched, twice.formerDigest], [0, 0, digest]);

  // By digest as well as by name.
  const byDigest = await pullCache(`${remote}#${digest}`, join(folder, 'other'), { policy });
  assert.equal(byDigest.digest, digest);
});

test('two caches that share files share them in the remote; a name that moves on loses nothing', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const remote = join(folder, 'remote');
  await buildScratchCache(join(folder, 'a'), { seed: 1 });
  await buildScratchCache(join(folder, 'b'), { seed: 2 });
  const a = await pushCache(join(folder, 'a'), remote, { policy });
  const b = await pushCache(join(folder, 'b'), remote, { policy });
  // Rows and tokenizer are the same.
  assert.equal(b.filesPresent, 4);
  assert.equal(b.formerDigest, a.digest);
  const caches = await listRemote(remote);
  assert.deepEqual(
    caches.map(({ digest, names, rowCount, teacher }) => [digest, names, rowCount, teacher]),
    [
      [b.digest, ['main'], 6, 'teacher-2'],
      [a.digest, [], 6, 'teacher-1'],
    ],
  );
  assert.deepEqual(caches[0]!.groups.map(({ group }) => group).sort(), [
    'head',
    'hidden-final',
    'rows',
    'tokenizer',
    'topk',
  ]);
  assert.equal((await pullCache(`${remote}#${a.digest}`, join(folder, 'old'), { policy })).digest, a.digest);
  // From one to the other: only what differs.
  const moved = await pullCache(remote, join(folder, 'old'), { policy });
  assert.deepEqual([moved.formerDigest, moved.digest], [a.digest, b.digest]);
  assert.equal(moved.filesFetched, b.filesSent);
  assert.deepEqual(await readTree(join(folder, 'old'), ['.pulled.json']), await readTree(join(folder, 'b')));
});

test('a pull of some groups fetches only their files; the cache opens, and the rest comes later', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const [remote, target] = [join(folder, 'remote'), join(folder, 'pulled')];
  await buildScratchCache(join(folder, 'cache'));
  await pushCache(join(folder, 'cache'), remote, { policy });
  const server = await serveFolder(t, remote);
  const part = await pullCache(server.url, target, { policy, groups: ['topk'] });
  assert.deepEqual([...part.groups].sort(), ['rows', 'tokenizer', 'topk']);
  assert.deepEqual([...part.omittedGroups].sort(), ['head', 'hidden-final']);
  assert.equal(part.filesFetched, 7);
  assert.equal(server.requests.filter((line) => line.includes('/blobs/')).length, 7);
  assert.deepEqual((await readdir(join(target, 'shards'))).sort(), [
    '00000.rows.arrow',
    '00000.topk.arrow',
    '00001.rows.arrow',
    '00001.topk.arrow',
    '00002.rows.arrow',
    '00002.topk.arrow',
  ]);
  assert.deepEqual((await verifyCache(target)).problems, []);
  const cache = await openCache(target);
  const { topk, hidden } = await cache.readRow(3);
  assert.ok(topk);
  assert.equal(hidden, undefined);
  await assert.rejects(cache.readOutputMatrix(), { code: 'CACHE_GROUP_ABSENT' });
  await cache.close();
  await assert.rejects(openCache(target, { groups: ['hidden-final'] }), {
    code: 'CACHE_GROUP_ABSENT',
    message: /left out when the cache was pulled.*cache pull.*hidden-final/,
  });
  const rest = await pullCache(server.url, target, { policy, groups: ['hidden-final', 'head'] });
  assert.equal(rest.filesFetched, 4);
  assert.deepEqual(rest.omittedGroups, []);
  assert.deepEqual(await readTree(target, ['.pulled.json']), await readTree(join(folder, 'cache')));
  await assert.rejects(pullCache(server.url, target, { policy, groups: ['top-k'] }), {
    code: 'PULL_GROUP_UNKNOWN',
    message: /no group top-k.*topk/,
  });
});

test('a file that was lost or changed here is fetched again, the others are not', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const [remote, target] = [join(folder, 'remote'), join(folder, 'pulled')];
  await buildScratchCache(join(folder, 'cache'));
  await pushCache(join(folder, 'cache'), remote, { policy });
  await pullCache(remote, target, { policy });
  await rm(join(target, 'shards/00001.topk.arrow'));
  const path = join(target, 'shards/00000.hidden-final.arrow');
  const bytes = await readFile(path);
  bytes[bytes.length >> 1]! ^= 1;
  await writeFile(path, bytes);
  const cache = await openCache(join(folder, 'cache'));
  await cache.close();
  assert.equal((await pullCache(remote, target, { policy })).filesFetched, 2);
  assert.deepEqual(await readTree(target, ['.pulled.json']), await readTree(join(folder, 'cache')));
});

test('what a pull hashed is not hashed again until it changes', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const [remote, target] = [join(folder, 'remote'), join(folder, 'pulled')];
  await buildScratchCache(join(folder, 'cache'));
  await pushCache(join(folder, 'cache'), remote, { policy });
  await pullCache(remote, target, { policy });
  const path = join(target, 'shards/00000.topk.arrow');
  const note = JSON.parse(await readFile(join(target, '.pulled.json'), 'utf8'));
  const { size, mtimeMs, ctimeMs } = await stat(path);
  assert.deepEqual(
    [note.files['shards/00000.topk.arrow'].sizeBytes, note.files['shards/00000.topk.arrow'].ctimeMs],
    [size, ctimeMs],
  );
  const bytes = await readFile(path);
  bytes[bytes.length >> 1]! ^= 1;
  await writeFile(path, bytes);
  const read = async () => {
    const cache = await openCache(target);
    try {
      await cache.readRow(0, { topk: true });
    } finally {
      await cache.close();
    }
  };
  // The note is of a file with other times, so the file is hashed.
  await assert.rejects(read(), { code: 'CACHE_FILE_DAMAGED', message: /00000\.topk\.arrow/ });
  // With a note that claims these times it is not: size and times are all that is compared.
  const now = await stat(path);
  assert.notEqual(now.mtimeMs, mtimeMs);
  Object.assign(note.files['shards/00000.topk.arrow'], { mtimeMs: now.mtimeMs, ctimeMs: now.ctimeMs });
  await writeFile(join(target, '.pulled.json'), JSON.stringify(note));
  await read().catch((error: { code: string }) => assert.notEqual(error.code, 'CACHE_FILE_DAMAGED'));
  // A note that is broken costs a hash, no more.
  await writeFile(join(target, '.pulled.json'), '{"omitted":');
  await assert.rejects(read(), { code: 'CACHE_FILE_DAMAGED' });
});

test('a push refuses what is not whole, and nothing of it is seen', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const [cache, remote] = [join(folder, 'cache'), join(folder, 'remote')];
  await buildScratchCache(cache);
  const path = join(cache, 'shards/00002.hidden-final.arrow');
  const bytes = await readFile(path);
  bytes[bytes.length >> 1]! ^= 1;
  await writeFile(path, bytes);
  await assert.rejects(pushCache(cache, remote, { policy }), {
    code: 'CACHE_FILE_DAMAGED',
    message: /00002\.hidden-final\.arrow.*not sent/,
  });
  assert.equal(await stat(remote).catch(() => undefined), undefined);
  await rm(path);
  await assert.rejects(pushCache(cache, remote, { policy }), {
    code: 'CACHE_FILE_MISSING',
    message: /00002\.hidden-final\.arrow.*neither here/,
  });
  assert.deepEqual(await listRemote(remote), []);
  await assert.rejects(pullCache(remote, join(folder, 'x'), { policy }), {
    code: 'REMOTE_CACHE_UNKNOWN',
    message: /the remote is empty/,
  });
  assert.equal(await stat(join(folder, 'x')).catch(() => undefined), undefined);
});

test('a push that ends in the middle leaves contents and no cache; the next one sends the rest', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const [cache, remote] = [join(folder, 'cache'), join(folder, 'remote')];
  await buildScratchCache(cache);
  const controller = new AbortController();
  const broken = pushCache(cache, remote, {
    policy: { ...policy, concurrency: 1 },
    signal: controller.signal,
    onProgress: ({ files }) => files === 5 && controller.abort(new Error('stop')),
  });
  await assert.rejects(broken, /stop/);
  assert.deepEqual(await listRemote(remote), []);
  assert.equal(await stat(join(remote, 'caches')).catch(() => undefined), undefined);
  const { filesPresent, filesSent } = await pushCache(cache, remote, { policy });
  assert.ok(filesPresent >= 5 && filesSent > 0, `${filesPresent} and ${filesSent}`);
});

test('a content that is shorter in the remote is replaced; one that went bad is replaced by --resend', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const [cache, remote] = [join(folder, 'cache'), join(folder, 'remote')];
  await buildScratchCache(cache);
  await pushCache(cache, remote, { policy });
  const blobs = (await readdir(join(remote, 'blobs/sha256'), { recursive: true }))
    .filter((name) => name.length > 60)
    .sort();
  const [cut, bad] = [join(remote, 'blobs/sha256', blobs[0]!), join(remote, 'blobs/sha256', blobs[1]!)];
  await writeFile(cut, 'x');
  const bytes = await readFile(bad);
  bytes[3]! ^= 1;
  await writeFile(bad, bytes);
  const pull = (name: string) => pullCache(remote, join(folder, name), { policy });
  await assert.rejects(pull('p1'), { code: 'REMOTE_FILE_DAMAGED', message: /came wrong 3 times/ });
  assert.equal((await pushCache(cache, remote, { policy })).filesSent, 1);
  await assert.rejects(pull('p1'), { code: 'REMOTE_FILE_DAMAGED', message: /sha256.*--resend/ });
  assert.equal((await pushCache(cache, remote, { policy, resend: true })).filesPresent, 0);
  await pull('p1');
  assert.deepEqual(await readTree(join(folder, 'p1'), ['.pulled.json']), await readTree(cache));
  await rm(cut);
  await assert.rejects(pull('p2'), { code: 'REMOTE_FILE_MISSING' });
});

test('a pull overwrites no cache that the remote does not have, and no folder of other things', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const remote = join(folder, 'remote');
  await buildScratchCache(join(folder, 'a'), { seed: 1 });
  await buildScratchCache(join(folder, 'b'), { seed: 2 });
  await pushCache(join(folder, 'a'), remote, { policy });
  const before = await readTree(join(folder, 'b'));
  await assert.rejects(pullCache(remote, join(folder, 'b'), { policy }), {
    code: 'PULL_WOULD_OVERWRITE',
    message: /a cache that the remote does not have/,
  });
  assert.deepEqual(await readTree(join(folder, 'b')), before);
  await mkdir(join(folder, 'other'));
  await writeFile(join(folder, 'other', 'thesis.tex'), 'x');
  await assert.rejects(pullCache(remote, join(folder, 'other'), { policy }), {
    code: 'PULL_TARGET_OCCUPIED',
    message: /thesis\.tex/,
  });
  await assert.rejects(pullCache(remote, join(folder, 'other', 'thesis.tex'), { policy }), {
    code: 'PULL_TARGET_OCCUPIED',
  });
});

test('links in the target are refused before anything is written', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const [remote, outside] = [join(folder, 'remote'), join(folder, 'outside')];
  await buildScratchCache(join(folder, 'cache'));
  await pushCache(join(folder, 'cache'), remote, { policy });
  await mkdir(outside);
  for (const [i, name] of ['shards', '.pull', 'tokenizer', 'manifest.json', '.pulled.json'].entries()) {
    const target = join(folder, `target-${i}`);
    await cp(join(folder, 'cache'), target, { recursive: true });
    await rm(join(target, name), { recursive: true, force: true });
    await symlink(outside, join(target, name));
    if (name === 'manifest.json') {
      await assert.rejects(pullCache(remote, target, { policy }), { name: 'StillhouseError' });
    } else {
      await assert.rejects(pullCache(remote, target, { policy }), { code: 'PULL_TARGET_UNSAFE', message: /a link/ });
    }
    assert.deepEqual(await readdir(outside), []);
  }
  const target = join(folder, 'single');
  await cp(join(folder, 'cache'), target, { recursive: true });
  await rm(join(target, 'shards/00000.topk.arrow'));
  await symlink(join(outside, 'file'), join(target, 'shards/00000.topk.arrow'));
  await assert.rejects(pullCache(remote, target, { policy }), { code: 'PULL_TARGET_UNSAFE', message: /00000\.topk/ });
  assert.deepEqual(await readdir(outside), []);
  // The target itself may be reached through a link.
  await symlink(outside, join(folder, 'here'));
  await pullCache(remote, join(folder, 'here'), { policy });
  assert.deepEqual(await readTree(outside, ['.pulled.json']), await readTree(join(folder, 'cache')));
});

test('bounds on what is pulled, a web server that is pushed to, places that are none', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const [cache, remote] = [join(folder, 'cache'), join(folder, 'remote')];
  await buildScratchCache(cache);
  await pushCache(cache, remote, { policy });
  await assert.rejects(pullCache(remote, join(folder, 'x'), { policy, maxBytes: 1000 }), {
    code: 'PULL_TOO_LARGE',
    message: /at most 1000 bytes/,
  });
  const { url } = await serveFolder(t, remote);
  await assert.rejects(pushCache(cache, url, { policy }), { code: 'REMOTE_READ_ONLY' });
  await assert.rejects(listRemote(`${url}/elsewhere`, { policy }), {
    code: 'REMOTE_NOT_FOUND',
    message: /index\.json/,
  });
  await assert.rejects(pullCache(`${remote}#other`, join(folder, 'x'), { policy }), {
    code: 'REMOTE_CACHE_UNKNOWN',
    message: /no cache named other; expected one of main/,
  });
  assert.deepEqual(
    (await listRemote(url, { policy })).map(({ names }) => names),
    [['main']],
  );
  await writeFile(join(remote, 'refs/main.json'), '{"format":"stillhouse-cache-ref","version":2,"digest":"x"}');
  await assert.rejects(pullCache(remote, join(folder, 'x'), { policy }), { code: 'REMOTE_VERSION_TOO_NEW' });
  await writeFile(join(remote, 'refs/main.json'), '{"format":"stillhouse-cache-ref","version":1,"digest":"../../x"}');
  await assert.rejects(pullCache(remote, join(folder, 'x'), { policy }), { code: 'REMOTE_INVALID', message: /digest/ });
  await writeFile(join(remote, 'refs/main.json'), '<html>');
  await assert.rejects(pullCache(remote, join(folder, 'x'), { policy }), { code: 'REMOTE_INVALID', message: /<html>/ });
  assert.equal(await stat(join(folder, 'x')).catch(() => undefined), undefined);
});
