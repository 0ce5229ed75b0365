import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { cp, mkdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { resolveSettings } from '@stillhouse/settings';
import { listFiles, readManifest } from '@stillhouse/teacher-cache';
import { makeTemporaryFolder, startNode } from '@stillhouse/testing';
import { type TestContext, test } from 'vitest';
import {
  buildTeacherCache,
  EXTEND_SETTINGS,
  extendTeacherCache,
  REPAIR_SETTINGS,
  type RepairSettings,
  repairTeacherCache,
} from '../index.ts';
import { buildSettings, idRows, readTree, writeRows } from '../testing/build-folder.ts';
import { goldenFolder } from '../testing/golden-teachers.ts';

const teacher = goldenFolder('qwen2-tiny-untied');
const tokenizer = fileURLToPath(new URL('../../../../data/demo/tokenizer', import.meta.url));
const oldCache = fileURLToPath(new URL('../../../../test/caches/v1/int8-topk-head', import.meta.url));

const text = [{ prompt: '12 + 30 = ', response: '42', split: 'train' }, { text: 'Tom has 3 apples.' }];

/** A cache of two data files with every kind of file in it, and a way to damage and mend copies. */
async function prepare(t: TestContext) {
  const folder = await makeTemporaryFolder(t);
  const data = await writeRows(join(folder, 'rows.jsonl'), [...text, ...idRows(5, 300)]);
  const more = await writeRows(join(folder, 'more.jsonl'), idRows(8, 300).slice(5));
  const sound = join(folder, 'sound');
  await buildTeacherCache(
    buildSettings({
      teacher,
      tokenizer,
      data,
      out: sound,
      rowsPerShard: 3,
      labels: ['topk', 'sampled', 'hidden'],
      topP: 0.3,
      maxK: 12,
      draws: 4,
      hiddenLayers: ['final', 1],
      batchTokens: 40,
    }),
  );
  await extendTeacherCache(
    resolveSettings(EXTEND_SETTINGS, { threads: 1, cache: sound, teacher, data: more, inPlace: true, batchTokens: 40 }),
  );
  const cache = join(folder, 'cache');
  const damage = async (work: (cache: string) => Promise<void>) => {
    await rm(cache, { recursive: true, force: true });
    await cp(sound, cache, { recursive: true });
    await work(cache);
  };
  const repair = (given: Partial<RepairSettings>) =>
    repairTeacherCache(resolveSettings(REPAIR_SETTINGS, { threads: 1, cache, ...given }));
  return { folder, data, more, sound, cache, damage, repair };
}

const sortKeys = (_: string, value: unknown) =>
  value !== null && typeof value === 'object' && !Array.isArray(value)
    ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)))
    : value;

async function flip(path: string, place = 0.5): Promise<void> {
  const bytes = await readFile(path);
  bytes[Math.floor(bytes.length * place)]! ^= 4;
  await writeFile(path, bytes);
}

test('every file, damaged, missing or cut, comes back with its bytes', { timeout: 240_000 }, async (t) => {
  const { data, more, sound, cache, damage, repair } = await prepare(t);
  const straight = readTree(sound);
  const paths = [...listFiles(await readManifest(sound))].map(({ file }) => file.path);
  const ways = [(path: string) => flip(path, 0.7), (path: string) => rm(path), (path: string) => truncate(path, 50)];
  for (const [i, path] of paths.entries()) {
    await damage((folder) => ways[i % ways.length]!(join(folder, path)));
    const { repaired, report } = await repair({ teacher, tokenizer, data: [data, more] });
    assert.deepEqual([repaired, report.problems], [[path], []]);
    assert.deepEqual(readTree(cache), straight, path);
  }
  // Everything but the manifest.
  await damage(async (folder) => {
    for (const place of ['shards', 'scales', 'head', 'tokenizer']) await rm(join(folder, place), { recursive: true });
  });
  const { repaired } = await repair({ teacher, tokenizer, data: [more, data] });
  assert.equal(repaired.length, paths.length);
  assert.deepEqual(readTree(cache), straight);
  assert.deepEqual((await repair({})).repaired, []);
});

test('what is needed is asked for, and no more', async (t) => {
  const { folder, data, more, sound, cache, damage, repair } = await prepare(t);
  const straight = readTree(sound);
  const rows = (folder: string) => flip(join(folder, 'shards/00000.rows.arrow'));
  await damage(rows);
  await assert.rejects(repair({}), { code: 'SETTING_MISSING', message: /--data rows\.jsonl/ });
  await assert.rejects(repair({ data: [more] }), { code: 'DATA_MISMATCH', message: /none of these is rows\.jsonl/ });
  // The cache's own tokenizer encodes them; no teacher is needed.
  await repair({ data: [data] });
  assert.deepEqual(readTree(cache), straight);

  await damage(async (folder) => {
    await rm(join(folder, 'tokenizer/tokenizer_config.json'));
  });
  await assert.rejects(repair({}), { code: 'TOKENIZER_MISMATCH' });
  await repair({ tokenizer });
  assert.deepEqual(readTree(cache), straight);

  await damage((folder) => flip(join(folder, 'shards/00003.hidden-1.arrow')));
  await assert.rejects(repair({ data: [data, more] }), { code: 'SETTING_MISSING', message: /--teacher/ });
  await assert.rejects(repair({ teacher: goldenFolder('qwen2-tiny') }), { code: 'TEACHER_MISMATCH' });
  const { repaired } = await repair({ teacher });
  assert.deepEqual(repaired, ['shards/00003.hidden-1.arrow']);
  assert.deepEqual(readTree(cache), straight);

  // A stray file is told of, not removed.
  await damage((folder) => writeFile(join(folder, 'notes.txt'), 'mine'));
  const { report } = await repair({});
  assert.deepEqual(report.problems, [{ file: 'notes.txt', problem: 'the file does not belong to the cache' }]);
  await damage((folder) => flip(join(folder, 'manifest.json')));
  await assert.rejects(repair({ teacher, data: [data, more] }), { code: 'CACHE_MANIFEST_INVALID' });
  await mkdir(join(folder, 'empty'));
  await assert.rejects(repair({ cache: join(folder, 'empty') }), { code: 'CACHE_NOT_FOUND' });
});

test('bytes that differ are refused, and the damaged file stays', async (t) => {
  const { cache, damage, repair, sound } = await prepare(t);
  const path = 'shards/00000.topk.arrow';
  await damage(async (folder) => {
    await flip(join(folder, path));
    // As if the cache had been computed elsewhere: the manifest says another hash than this machine gets.
    const manifest = JSON.parse(await readFile(join(folder, 'manifest.json'), 'utf8'));
    manifest.shards[0].files.topk.sha256 = '0'.repeat(64);
    const { digest: _, ...rest } = manifest;
    const digest = createHash('sha256').update(JSON.stringify(rest, sortKeys)).digest('hex');
    await writeFile(join(folder, 'manifest.json'), JSON.stringify({ digest, ...rest }));
  });
  const before = await readFile(join(cache, path));
  await assert.rejects(repair({ teacher }), { code: 'CACHE_REPAIR_DIFFERS', message: /topk.*sha256 0{64}/ });
  assert.deepEqual(await readFile(join(cache, path)), before);
  assert.deepEqual([...readTree(cache).keys()], [...readTree(sound).keys()]);
});

test('a repair killed in the middle is run again', async (t) => {
  const { cache, damage, sound } = await prepare(t);
  await damage(async (folder) => {
    for (let shard = 0; shard < 4; shard++) {
      for (const group of ['topk', 'hidden-1']) await flip(join(folder, `shards/0000${shard}.${group}.arrow`));
    }
  });
  const script = fileURLToPath(new URL('../testing/run-repair.ts', import.meta.url));
  const settings = JSON.stringify({ threads: 1, cache, teacher });
  const counts: number[] = [];
  for (const kill of ['1', '3', undefined]) {
    const { child, finished } = startNode([script, settings]);
    child.stdout!.on('data', (text: string) => {
      if (kill !== undefined && text.split('\n').includes(kill)) child.kill('SIGKILL');
    });
    const { code, signal, stdout, stderr } = await finished;
    assert.ok(code === 0 || signal === 'SIGKILL', stderr);
    counts.push(Number(/repaired (\d+)/.exec(stdout)?.[1] ?? -1));
  }
  assert.ok(counts.at(-1)! < 8, `what was repaired before is not repaired again: ${counts}`);
  assert.deepEqual(readTree(cache), readTree(sound));
});

test('a cache of format version 1 is repaired to its bytes, and extended', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const cache = join(folder, 'cache');
  await cp(oldCache, cache, { recursive: true });
  // What a version computes has its last bits from the program and the processor of that day; what it copies has not.
  await rm(join(cache, 'head/output_matrix.arrow'));
  const { repaired, report } = await repairTeacherCache(
    resolveSettings(REPAIR_SETTINGS, { threads: 1, cache, teacher }),
  );
  assert.deepEqual([repaired.length, report.problems], [1, []]);
  assert.deepEqual(readTree(cache), readTree(oldCache));
  const out = join(folder, 'out');
  await extendTeacherCache(
    resolveSettings(EXTEND_SETTINGS, { threads: 1, cache, out, teacher, topK: 7, hiddenLayers: [1] }),
  );
  const manifest = await readManifest(out);
  assert.deepEqual(manifest.description.labels.hidden?.layers, ['final', 1]);
  assert.equal(
    [...listFiles(manifest)].find(({ group }) => group === 'hidden-final')!.file.sha256,
    [...listFiles(await readManifest(oldCache))].find(({ group }) => group === 'hidden-final')!.file.sha256,
  );
});
