import assert from 'node:assert/strict';
import { statSync } from 'node:fs';
import { cp, readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { resolveSettings } from '@stillhouse/settings';
import { listFiles, openCache, readManifest, teacherSha256, verifyCache } from '@stillhouse/teacher-cache';
import { makeTemporaryFolder, startNode } from '@stillhouse/testing';
import { type TestContext, test } from 'vitest';
import {
  type BuildSettings,
  buildTeacherCache,
  EXTEND_SETTINGS,
  type ExtendSettings,
  extendTeacherCache,
} from '../index.ts';
import { buildSettings, idRows, readTree, writeRows } from '../testing/build-folder.ts';
import { goldenFolder } from '../testing/golden-teachers.ts';

const teacher = goldenFolder('qwen2-tiny-untied');
const script = fileURLToPath(new URL('../testing/run-extend.ts', import.meta.url));
const rows = idRows(19);

async function prepare(t: TestContext) {
  const folder = await makeTemporaryFolder(t);
  const data = await writeRows(join(folder, 'rows.jsonl'), rows.slice(0, 11));
  const more = await writeRows(join(folder, 'more.jsonl'), rows.slice(11));
  const build = (name: string, given: Partial<BuildSettings>) =>
    buildTeacherCache(buildSettings({ teacher, data, out: join(folder, name), rowsPerShard: 4, topK: 6, ...given }));
  const extend = (name: string, given: Partial<ExtendSettings>) =>
    extendTeacherCache(extendSettings({ cache: join(folder, name), teacher, ...given }));
  return { folder, more, build, extend, at: (name: string) => join(folder, name) };
}

const extendSettings = (given: Partial<ExtendSettings>): ExtendSettings =>
  resolveSettings(EXTEND_SETTINGS, { threads: 1, ...given });

const hashes = async (folder: string) =>
  new Map([...listFiles(await readManifest(folder))].map(({ file }) => [file.path, file.sha256]));

const requireSound = async (folder: string) => assert.deepEqual((await verifyCache(folder)).problems, []);

test('labels that are added are those of a cache that had them from the start', async (t) => {
  const { build, extend, at } = await prepare(t);
  await build('topk', { labels: ['topk'] });
  await build('full', { hiddenLayers: ['final', 1] });
  await build('wide', { hiddenLayers: ['final', 1], topK: 9, temperatures: [1, 2, 4, 8] });
  const former = readTree(at('topk'));

  const hidden = await extend('topk', { out: at('hidden'), labels: ['hidden'] });
  assert.deepEqual([hidden.labels.topk?.k, hidden.labels.topk?.temperatures], [6, [1, 2, 4]]);
  assert.deepEqual([hidden.labels.hidden, hidden.labels.head], [{ layers: ['final'], dtype: 'int8' }, true]);
  assert.deepEqual(readTree(at('topk')), former, 'the cache that was extended stays as it was');
  await requireSound(at('hidden'));
  for (const [path, sha256] of await hashes(at('topk'))) {
    assert.equal((await hashes(at('hidden'))).get(path), sha256, path);
    assert.equal(statSync(join(at('topk'), path)).ino, statSync(join(at('hidden'), path)).ino, `${path} is one file`);
  }

  await extend('hidden', { out: at('layers'), hiddenLayers: [1] });
  assert.deepEqual(readTree(at('layers')), readTree(at('full')));

  await build('attention', { labels: ['hidden'], hiddenLayers: ['final', 1, 'attention.1', 'attention.2'] });
  await build('states', { labels: ['hidden'], hiddenLayers: ['final', 1] });
  await extend('states', { out: at('extended'), hiddenLayers: ['attention.2', 'attention.1'] });
  assert.deepEqual(readTree(at('extended')), readTree(at('attention')));
  const versions = await Promise.all(
    ['states', 'extended'].map(async (name) => (await readManifest(at(name))).version),
  );
  assert.deepEqual(versions, [2, 3], 'only what older readers cannot read is new to them');
  await requireSound(at('extended'));

  await extend('layers', { out: at('larger'), topK: 9, temperatures: [8] });
  assert.deepEqual(readTree(at('larger')), readTree(at('wide')));
});

test('sampled labels and ragged top-k are added as a build makes them; what is there keeps its policy', async (t) => {
  const { build, extend, at } = await prepare(t);
  const ragged = { topK: undefined, topP: 0.5, minK: 2, maxK: 30, pin: [3, 9] } as const;
  const drawn = { draws: 7, sampleTemperature: 2, sampleSeed: 5 };
  await build('hidden', { labels: ['hidden'] });
  await build('all', { labels: ['topk', 'sampled', 'hidden'], ...ragged, ...drawn });
  await extend('hidden', { out: at('sampled'), ...drawn });
  await extend('sampled', { inPlace: true, ...ragged });
  assert.deepEqual(readTree(at('sampled')), readTree(at('all')));
  const cases: readonly (readonly [RegExp, Partial<ExtendSettings>])[] = [
    [/labels\.topk\.topP cannot change; expected 0\.5, got 0\.9/, { topP: 0.9 }],
    [/labels\.topk\.packing cannot change; expected zstd, got plain/, { packing: 'plain' }],
    [/labels\.topk\.pinnedIds cannot change; expected 3,9, got 4/, { pin: [4] }],
    [/labels\.sampled\.draws cannot change; expected 7, got 8/, { draws: 8 }],
    [/labels\.sampled\.seed cannot change; expected 5, got 0/, { sampleSeed: 0 }],
  ];
  for (const [message, given] of cases)
    await assert.rejects(extend('all', { inPlace: true, ...given }), { code: 'CACHE_EXTENSION_IMPOSSIBLE', message });
});

test('a larger k in place: new names for top-k alone, the old files go, the rest is not touched', async (t) => {
  const { build, extend, at } = await prepare(t);
  await build('cache', {});
  await build('wide', { topK: 9 });
  const before = await hashes(at('cache'));
  const inodes = new Map([...before.keys()].map((path) => [path, statSync(join(at('cache'), path)).ino]));
  const { formerDigest, cacheDigest } = await extend('cache', { inPlace: true, topK: 9 });
  assert.notEqual(formerDigest, cacheDigest);
  await requireSound(at('cache'));
  const after = await hashes(at('cache'));
  const wide = await hashes(at('wide'));
  assert.deepEqual(
    [...after.keys()].filter((path) => !before.has(path)),
    ['shards/00000.topk.r1.arrow', 'shards/00001.topk.r1.arrow', 'shards/00002.topk.r1.arrow'],
  );
  for (const [path, sha256] of after) assert.equal(sha256, wide.get(path.replace('.r1', '')), path);
  for (const path of after.keys()) {
    if (before.has(path)) assert.equal(statSync(join(at('cache'), path)).ino, inodes.get(path), path);
  }
  assert.deepEqual((await readdir(at('cache'))).sort(), ['head', 'manifest.json', 'scales', 'shards']);
  assert.equal((await readdir(at('cache'), { recursive: true })).filter((name) => /topk\.arrow/.test(name)).length, 0);
  await extend('cache', { inPlace: true, topK: 12 });
  assert.ok((await hashes(at('cache'))).has('shards/00002.topk.r2.arrow'));
  await requireSound(at('cache'));

  const again = await extend('cache', { inPlace: true, topK: 10, labels: ['hidden'] });
  assert.deepEqual([again.wasComplete, again.formerDigest === again.cacheDigest], [true, true]);
});

test('rows are added behind a shard that is not full, with all labels', async (t) => {
  const { build, extend, at, more } = await prepare(t);
  await build('cache', { hiddenLayers: ['final', 1] });
  const before = await hashes(at('cache'));
  const result = await extend('cache', { inPlace: true, data: more, topK: 8 });
  assert.deepEqual([result.rowsAdded, result.rows], [8, 19]);
  await requireSound(at('cache'));
  const manifest = await readManifest(at('cache'));
  assert.deepEqual(
    manifest.shards.map(({ firstRow, rowCount }) => [firstRow, rowCount]),
    [
      [0, 4],
      [4, 4],
      [8, 3],
      [11, 4],
      [15, 4],
    ],
  );
  for (const [path, sha256] of before) {
    if (!path.includes('topk')) assert.equal((await hashes(at('cache'))).get(path), sha256, path);
  }
  const cache = await openCache(at('cache'));
  assert.deepEqual(
    cache.rowIds,
    rows.map(({ id }) => id),
  );
  for (const index of [18, 0, 11, 10, 15, 3]) {
    const { row, topk, hidden } = await cache.readRow(index);
    assert.deepEqual([...row.inputIds], rows[index]!.input_ids);
    assert.ok(topk!.counts.every((count) => count === 8));
    assert.deepEqual([...hidden!.keys()], ['final', 1]);
  }
  await cache.close();
  // Who made what.
  const [of, further] = [manifest.description.data, manifest.description.furtherData![0]!];
  assert.deepEqual([of.name, further.name, further.rowCount], ['rows.jsonl', 'more.jsonl', 8]);
  for (const group of ['rows', 'topk', 'hidden-final', 'hidden-1']) {
    const made = manifest.provenance.filter((entry) => entry.group === group);
    assert.deepEqual(
      made.map(({ firstRow, rowCount, data, teacherSha256, settings }) => [
        firstRow,
        rowCount,
        data.name,
        teacherSha256,
        settings,
      ]),
      [
        [0, 11, 'rows.jsonl'],
        [11, 8, 'more.jsonl'],
      ].map((entry) => [
        ...entry,
        group === 'rows' ? null : teacherSha256(manifest.description.teacher!),
        group === 'rows' ? {} : { batchTokens: 1024, device: 'cpu' },
      ]),
    );
  }
  const again = await extend('cache', { inPlace: true, data: more });
  assert.equal(again.wasComplete, true);
  // A third file, and the same rows under another name.
  const [twice, fresh] = await Promise.all([
    writeRows(join(at('.'), 'twice.jsonl'), [rows[3]!]),
    writeRows(join(at('.'), 'fresh.jsonl'), [{ ...rows[3]!, id: 'fresh' }]),
  ]);
  await assert.rejects(extend('cache', { inPlace: true, data: twice }), {
    code: 'ROW_ID_DUPLICATE',
    message: /line 1.*"row-3"/,
  });
  await extend('cache', { inPlace: true, data: fresh });
  await requireSound(at('cache'));
  assert.equal((await readManifest(at('cache'))).rows.stored, 20);
});

test('an extension killed at random leaves the cache as it was, and ends in the same bytes', {
  timeout: 240_000,
}, async (t) => {
  const { build, extend, at, more } = await prepare(t);
  await build('base', { labels: ['topk'], rowsPerShard: 1 });
  await cp(at('base'), at('straight'), { recursive: true });
  const given = { data: more, topK: 9, hiddenLayers: ['final', 2] as const };
  const { cacheDigest } = await extend('straight', { inPlace: true, ...given });
  const former = (await readManifest(at('base'))).digest;
  await cp(at('base'), at('killed'), { recursive: true });
  const places = [
    { cache: at('killed'), inPlace: true },
    { cache: at('base'), out: at('elsewhere') },
  ];
  for (const place of places) {
    const settings = extendSettings({ teacher, ...given, ...place });
    let kills = 0;
    for (;;) {
      const { child, finished } = startNode([script, JSON.stringify(settings)]);
      // Of about ninety lines.
      const lines = kills < 6 ? kills * 5 + Math.floor(Math.random() * 9) : Infinity;
      let seen = 0;
      child.stdout!.on('data', (text: string) => {
        seen += text.split('\n').length - 1;
        if (seen > lines) child.kill('SIGKILL');
      });
      const { code, signal, stderr } = await finished;
      if (code === 0) break;
      assert.equal(signal, 'SIGKILL', stderr);
      kills++;
      const { digest, problems } = await verifyCache(place.cache);
      assert.deepEqual(problems, [], `after kill ${kills}`);
      assert.ok(digest === former || digest === cacheDigest);
    }
    assert.ok(kills > 0, 'it was never killed');
  }
  assert.deepEqual(readTree(at('killed')), readTree(at('straight')));
  await requireSound(at('elsewhere'));
  const labels = async (name: string) => [...(await hashes(at(name))).values()].sort();
  assert.deepEqual(await labels('elsewhere'), await labels('straight'));
});

test('what an extension cannot be is refused, and nothing is touched', async (t) => {
  const { build, extend, at, more, folder } = await prepare(t);
  await build('cache', {});
  const before = readTree(at('cache'));
  const cases: readonly (readonly [string, RegExp, Partial<ExtendSettings>])[] = [
    ['EXTEND_PLACE', /got neither/, { topK: 9 }],
    ['EXTEND_PLACE', /got both/, { topK: 9, inPlace: true, out: at('x') }],
    ['TEACHER_MISMATCH', /weightsSha256/, { topK: 9, inPlace: true, teacher: goldenFolder('qwen2-tiny') }],
    ['SETTING_MISSING', /--teacher/, { topK: 9, inPlace: true, teacher: undefined }],
    ['CACHE_EXTENSION_IMPOSSIBLE', /hidden states would change/, { hiddenDtype: 'f16', inPlace: true }],
    ['CACHE_FOLDER_NOT_EMPTY', /rows\.jsonl/, { topK: 9, out: folder }],
    ['DATA_NOT_READABLE', /no such file/, { data: join(folder, 'none.jsonl'), inPlace: true }],
    ['CACHE_NOT_FOUND', /nowhere/, { cache: at('nowhere'), topK: 9, inPlace: true }],
  ];
  for (const [code, message, given] of cases) {
    await assert.rejects(extend('cache', given), { code, message });
    assert.deepEqual(readTree(at('cache')), before);
  }
  // Another extension than the one that was begun.
  const settings = extendSettings({ cache: at('cache'), teacher, topK: 9, inPlace: true });
  const { child, finished } = startNode([script, JSON.stringify(settings)]);
  child.stdout!.on('data', (text: string) => {
    if (text.includes('written 1')) child.kill('SIGKILL');
  });
  await finished;
  await assert.rejects(extend('cache', { data: more, inPlace: true }), {
    code: 'CACHE_EXTENSION_UNFINISHED',
    message: /labels\.topk\.k 9.*delete .*extend\.json/,
  });
  await rm(join(at('cache'), 'extend.json'));
  await extend('cache', { data: more, inPlace: true });
  await requireSound(at('cache'));
  await writeFile(
    join(at('cache'), '.lock'),
    JSON.stringify({ pid: process.pid, host: (await import('node:os')).hostname(), started: null }),
  );
  await assert.rejects(extend('cache', { topK: 9, inPlace: true }), { code: 'CACHE_IN_USE' });
});
