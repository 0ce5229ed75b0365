import assert from 'node:assert/strict';
import { mkdir, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { readManifest } from '@stillhouse/teacher-cache';
import { makeTemporaryFolder } from '@stillhouse/testing';
import { test } from 'vitest';
import { listRemote, openRemoteCache, pullCache, pushCache } from '../index.ts';
import { QUICK } from '../testing/policy.ts';
import { buildScratchCache } from '../testing/scratch-cache.ts';
import { digestOf } from '../testing/seal-manifest.ts';

const policy = QUICK;

// biome-ignore lint/suspicious/noExplicitAny: manifests are edited here in ways that types forbid
type Hostile = any;

test('a hostile manifest is refused before anything is written, by a pull and by a reader', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const [cache, remote, home] = [join(folder, 'cache'), join(folder, 'remote'), join(folder, 'home')];
  await buildScratchCache(cache);
  await pushCache(cache, remote, { policy });
  await mkdir(home);
  const text = await readFile(join(cache, 'manifest.json'), 'utf8');

  const publish = async (content: string, digest: string) => {
    await mkdir(join(remote, 'caches', digest), { recursive: true });
    await writeFile(join(remote, 'caches', digest, 'manifest.json'), content);
    await writeFile(
      join(remote, 'refs/main.json'),
      JSON.stringify({ format: 'stillhouse-cache-ref', version: 1, digest }),
    );
  };
  const requireRefused = async (name: string, expected: { readonly code: string; readonly message?: RegExp }) => {
    const target = join(home, 'target');
    await assert.rejects(pullCache(remote, target, { policy }), expected, name);
    assert.deepEqual(await readdir(home), [], `${name}: something was written`);
    const opening = openRemoteCache(`file://${remote}`, { policy, cacheFolder: join(home, 'local') });
    if (expected.code !== 'PULL_TOO_LARGE') {
      await assert.rejects(opening, { code: expected.code }, name);
      assert.deepEqual(await readdir(home), [], `${name}: something was written`);
    } else {
      await opening.then(
        (opened) => opened.close(),
        () => {},
      );

      await rm(join(home, 'local'), { recursive: true, force: true });
    }
  };

  const first = (m: Hostile) => m.shards[0].files.topk;
  const invalid = 'CACHE_MANIFEST_INVALID';
  const cases: readonly (readonly [string, string, RegExp, (manifest: Hostile) => void])[] = [
    ['path traversal', invalid, /files\.topk\.path/, (m) => (first(m).path = '../../etc/passwd')],
    [
      'path traversal within',
      invalid,
      /files\.topk\.path/,
      (m) => (first(m).path = 'shards/../shards/00000.topk.arrow'),
    ],
    ['absolute path', invalid, /tokenizer\[0\]\.path/, (m) => (m.tokenizer[0].path = '/etc/cron.d/x')],
    ['drive', invalid, /tokenizer\[0\]\.path/, (m) => (m.tokenizer[0].path = 'C:\\windows\\x')],
    ['backslash', invalid, /tokenizer\[0\]\.path/, (m) => (m.tokenizer[0].path = 'tokenizer/..\\..\\x')],
    ['backslash in a shard', invalid, /files\.topk\.path/, (m) => (first(m).path = 'shards\\00000.topk.arrow')],
    ['null byte', invalid, /tokenizer\[0\]\.path/, (m) => (m.tokenizer[0].path = 'tokenizer/x\u0000y')],
    ['hidden file', invalid, /tokenizer\[0\]\.path/, (m) => (m.tokenizer[0].path = 'tokenizer/.bashrc')],
    ['twice the same path', invalid, /each file once/, (m) => m.tokenizer.push(m.tokenizer[0])],
    [
      'paths that differ in case only',
      invalid,
      /each file once/,
      (m) => m.tokenizer.push({ ...m.tokenizer[0], path: 'tokenizer/TOKENIZER.json' }),
    ],
    ['negative size', invalid, /sizeBytes/, (m) => (first(m).sizeBytes = -1)],
    ['size of a fraction', invalid, /sizeBytes/, (m) => (first(m).sizeBytes = 1.5)],
    ['size as text', invalid, /sizeBytes/, (m) => (first(m).sizeBytes = '12')],
    ['size null, which NaN becomes in JSON', invalid, /sizeBytes/, (m) => (first(m).sizeBytes = Number.NaN)],
    ['size beyond whole numbers', invalid, /sizeBytes/, (m) => (first(m).sizeBytes = 2 ** 60)],
    ['size of a file that its counts forbid', invalid, /topk\.arrow: sizeBytes/, (m) => (first(m).sizeBytes = 2 ** 40)],
    [
      'size of rows beyond any file',
      invalid,
      /rows\.arrow: sizeBytes/,
      (m) => (m.shards[0].files.rows.sizeBytes = 2 ** 45),
    ],
    ['size of a tokenizer', invalid, /tokenizer\.json: sizeBytes/, (m) => (m.tokenizer[0].sizeBytes = 2 ** 33)],
    ['matrix smaller than its shape', invalid, /output_matrix.*at least/, (m) => (m.outputMatrix.sizeBytes = 3)],
    ['matrix larger than its shape', invalid, /output_matrix.*at most/, (m) => (m.outputMatrix.sizeBytes = 2 ** 38)],
    [
      'a shape without end',
      invalid,
      /output_matrix|outputMatrix/,
      (m) => {
        m.description.teacher.vocabSize = 2 ** 40;
        m.outputMatrix.rows = 2 ** 40;
      },
    ],
    ['negative count', invalid, /tokenCount/, (m) => (m.shards[0].tokenCount = -5)],
    ['more positions than tokens', invalid, /positionCount/, (m) => (m.shards[0].positionCount = 2 ** 40)],
    [
      'rows without end',
      invalid,
      /rows\.planned/,
      (m) => {
        m.rows.planned = 2 ** 50;
        m.description.rowsPerShard = 2 ** 50;
      },
    ],
    [
      'shards without end',
      invalid,
      /rows\.planned/,
      (m) => {
        m.rows.planned = 2 ** 30;
        m.description.rowsPerShard = 1;
      },
    ],
    ['more than the disk holds', 'PULL_TOO_LARGE', /disk/, (m) => (m.shards[0].files.rows.sizeBytes = 2 ** 41)],
    ['not complete', 'CACHE_INCOMPLETE', /rows are there/, (m) => (m.complete = false)],
  ];
  for (const [name, code, message, edit] of cases) {
    const manifest = JSON.parse(text) as Hostile;
    edit(manifest);
    const sent = JSON.parse(JSON.stringify(manifest)) as Hostile;
    sent.digest = digestOf(sent);
    await publish(JSON.stringify(sent), sent.digest);
    await requireRefused(name, { code, message });
  }
  // A digest that does not fit, a manifest of another digest, a nesting that would overflow the stack.
  const { digest } = JSON.parse(text) as Hostile;
  await publish(text.replace('teacher-1', 'teacher-9'), digest);
  await requireRefused('other content', { code: invalid, message: /digest/ });
  await publish(text, 'e'.repeat(64));
  await requireRefused('another digest', { code: 'REMOTE_INVALID', message: /another cache/ });
  const deep = `${'['.repeat(200_000)}${']'.repeat(200_000)}`;
  await publish(text.replace('"rows": {', `"x": ${deep}, "rows": {`), digest);
  await requireRefused('nesting', { code: invalid, message: /nest/ });
});

test('a remote that lists what is no cache is not believed', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const [cache, remote] = [join(folder, 'cache'), join(folder, 'remote')];
  await buildScratchCache(cache);
  await pushCache(cache, remote, { policy });
  const { digest } = await readManifest(cache);
  await mkdir(join(remote, 'caches/..x'), { recursive: true });
  await writeFile(join(remote, 'caches/..x/manifest.json'), '{}');
  await mkdir(join(remote, 'refs/sub'));
  await writeFile(join(remote, 'refs/sub/x.json'), '{}');
  assert.deepEqual(
    (await listRemote(remote)).map((one) => one.digest),
    [digest],
  );
  // A content that is a folder, or a pipe that would be waited for.
  const { shards } = await readManifest(cache);
  const { sha256 } = shards[0]!.files.topk!;

  const path = join(remote, 'blobs/sha256', sha256.slice(0, 2), sha256);
  await rm(path);
  await mkdir(path);
  await assert.rejects(pullCache(remote, join(folder, 'x'), { policy }), {
    code: 'REMOTE_FILE_MISSING',
    message: /topk/,
  });
  assert.equal((await stat(join(folder, 'x'))).isDirectory(), true);
});
