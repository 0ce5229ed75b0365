import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { cp, mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { mergeCache, openCache, verifyCache } from '@stillhouse/teacher-cache';
import { type Lifetime, makeTemporaryFolder, startNode } from '@stillhouse/testing';
import { afterAll, describe, test } from 'vitest';
import { type BuildSettings, buildTeacherCache } from '../index.ts';
import { buildSettings, idRows, readTree, writeRows } from '../testing/build-folder.ts';
import { goldenFolder } from '../testing/golden-teachers.ts';

const SHARDS = 7;
const script = fileURLToPath(new URL('../testing/run-build.ts', import.meta.url));
const partsOf = (count: number) => Array.from({ length: count }, (_, i) => `${i + 1}/${count}`);

/** Settings of one cache in several folders, and its bytes as one builder makes it. */
async function prepare(t: Lifetime) {
  const folder = await makeTemporaryFolder(t);
  const data = await writeRows(join(folder, 'rows.jsonl'), idRows(3 * SHARDS - 1));
  const settingsOf = (name: string, partition?: string, more: Partial<BuildSettings> = {}): BuildSettings =>
    buildSettings({
      teacher: goldenFolder('qwen2-tiny-untied'),
      data,
      out: join(folder, name),
      rowsPerShard: 3,
      topK: 6,
      hiddenLayers: ['final', 1],
      ...(partition === undefined ? {} : { partition }),
      ...more,
    });
  await buildTeacherCache(settingsOf('straight'));
  return { folder, settingsOf, straight: readTree(join(folder, 'straight')) };
}

describe('a cache built in parts', async () => {
  const { folder, settingsOf, straight } = await prepare({ onTestFinished: afterAll });

  for (const count of [2, 3, SHARDS + 2]) {
    test(`any order of ${count} parts gives the bytes of one builder; the last part merges`, async () => {
      const name = `in-${count}`;
      // The last first: it has to measure on a shard that is not its own.
      for (const partition of partsOf(count).reverse()) {
        const result = await buildTeacherCache(settingsOf(name, partition));
        const isLast = partition.startsWith('1/');
        assert.equal(result.cacheDigest === null, !isLast);
        assert.equal(result.unfinishedParts.length, isLast ? 0 : Number(partition.split('/')[0]) - 1);
      }
      assert.deepEqual(readTree(join(folder, name)), straight);
      const again = await buildTeacherCache(settingsOf(name, `2/${count}`));
      assert.deepEqual([again.wasComplete, again.unfinishedParts], [true, []]);
      assert.equal((await mergeCache(join(folder, name))).wasMerged, true);
      assert.deepEqual(readTree(join(folder, name)), straight);
    });
  }

  test('parts in processes of their own, killed at random, end in the same bytes', async () => {
    const run = async (partition: string) => {
      for (let kill = 0; ; kill++) {
        const { child, finished } = startNode([script, JSON.stringify(settingsOf('killed', partition))]);
        const lines = kill < 3 ? Math.floor(Math.random() * 12) : Infinity;
        let seen = 0;
        child.stdout!.on('data', (text: string) => {
          seen += text.split('\n').length - 1;
          if (seen > lines) child.kill('SIGKILL');
        });
        const { code, signal, stderr } = await finished;
        if (code === 0) return;
        assert.equal(signal, 'SIGKILL', stderr);
      }
    };
    await Promise.all(partsOf(3).map(run));
    assert.deepEqual(readTree(join(folder, 'killed')), straight);
    assert.deepEqual((await verifyCache(join(folder, 'killed'))).problems, []);
  });

  test('parts in folders of their own are merged into a new one, or into one of them', async () => {
    const folders = partsOf(3).map((_, i) => join(folder, `apart-${i}`));
    for (const [i, partition] of partsOf(3).entries()) {
      const { unfinishedParts } = await buildTeacherCache(settingsOf(`apart-${i}`, partition));
      assert.equal(unfinishedParts.length, 2);
    }
    await assert.rejects(mergeCache(join(folder, 'joined'), folders.slice(1)), {
      code: 'CACHE_PARTS_MISSING',
      message: /1 of 3 parts are not finished: 1\/3 \(not begun\)/,
    });
    await mergeCache(join(folder, 'joined'), folders);
    assert.deepEqual(readTree(join(folder, 'joined')), straight);
    await mergeCache(folders[1]!, [folders[0]!, folders[2]!]);
    assert.deepEqual(readTree(folders[1]!), straight);
  });

  test('what is missing is named; until the merge there is no cache', async () => {
    await buildTeacherCache(settingsOf('missing', '2/3'));
    const { child, finished } = startNode([script, JSON.stringify(settingsOf('missing', '3/3'))]);
    child.stdout!.on('data', (text: string) => {
      if (text.includes('written 1')) child.kill('SIGKILL');
    });
    await finished;
    const out = join(folder, 'missing');
    await assert.rejects(mergeCache(out), {
      code: 'CACHE_PARTS_MISSING',
      message: /2 of 3 parts are not finished: 1\/3 \(not begun\), 3\/3 \([12] of 2 shards\)/,
    });
    await assert.rejects(openCache(out), { code: 'CACHE_NOT_MERGED', message: /cache merge/ });
    await assert.rejects(mergeCache(join(folder, 'nowhere')), { code: 'CACHE_NOT_FOUND' });
    await assert.rejects(mergeCache(out, [join(folder, 'nowhere')]), { code: 'CACHE_NOT_FOUND', message: /nowhere/ });
  });

  test('parts of another cache, or of another number, are refused', async () => {
    const { shards } = await buildTeacherCache(settingsOf('mixed', '1/2'));
    assert.equal(shards, 4);
    const before = readTree(join(folder, 'mixed'));
    await assert.rejects(buildTeacherCache(settingsOf('mixed', '2/2', { topK: 7 })), {
      code: 'CACHE_CONFIG_MISMATCH',
      message: /labels\.topk\.k 6.*got labels\.topk\.k 7/,
    });
    await assert.rejects(buildTeacherCache(settingsOf('mixed', '3/4')), {
      code: 'CACHE_PARTS_DISAGREE',
      message: /--partition i\/2.*i\/4/,
    });
    await assert.rejects(buildTeacherCache(settingsOf('mixed')), { code: 'CACHE_BUILT_IN_PARTS' });
    assert.deepEqual(readTree(join(folder, 'mixed')), before);
    await buildTeacherCache(settingsOf('other', '2/2', { topK: 7 }));
    await assert.rejects(mergeCache(join(folder, 'both'), [join(folder, 'mixed'), join(folder, 'other')]), {
      code: 'CACHE_CONFIG_MISMATCH',
      message: /labels\.topk\.k/,
    });
    assert.equal(existsSync(join(folder, 'both/manifest.json')), false);
    // Scales that were measured on other states.
    await buildTeacherCache(settingsOf('scaled', '2/2'));
    const foreign = join(folder, 'foreign');
    await mkdir(join(foreign, 'scales'), { recursive: true });
    await mkdir(join(foreign, 'parts'));
    await cp(
      join(folder, 'scaled/scales/hidden-1.channel_rms.arrow'),
      join(foreign, 'scales/hidden-final.channel_rms.arrow'),
    );
    await cp(join(folder, 'scaled/parts/plan.json'), join(foreign, 'parts/plan.json'));
    await buildTeacherCache({ ...settingsOf('foreign', '2/2') });
    await assert.rejects(mergeCache(join(folder, 'both'), [join(folder, 'mixed'), foreign]), {
      code: 'CACHE_PARTS_DISAGREE',
      message: /part 2\/2 was scaled by other numbers of layer final/,
    });
  });

  test('two builders of one part: the second is refused; one of a whole cache and one of a part too', async () => {
    const events = (name: string, partition: string | undefined, other: () => Promise<unknown>) => {
      let isAsked = false;
      let asked: Promise<void> = Promise.resolve();
      const building = buildTeacherCache(settingsOf(name, partition), {
        onProgress: () => {
          if (isAsked) return;
          isAsked = true;
          asked = other().then(() => {});
        },
      });
      return building.then(() => asked);
    };
    const refused = (name: string, partition: string | undefined, code: string) => () =>
      assert.rejects(buildTeacherCache(settingsOf(name, partition)), { code });
    await events('twice', '1/2', refused('twice', '1/2', 'CACHE_IN_USE'));
    await events('twice', '2/2', refused('twice', '2/2', 'CACHE_IN_USE'));
    assert.deepEqual(readTree(join(folder, 'twice')), straight);
    await events('part', '1/2', refused('part', undefined, 'CACHE_BUILT_IN_PARTS'));
    await events('whole', undefined, refused('whole', '2/2', 'CACHE_IN_USE'));
    assert.deepEqual(readTree(join(folder, 'whole')), straight);
  });

  test('files that come and go in a part are not another part', async () => {
    await buildTeacherCache(settingsOf('lost', '1/2'));
    await rm(join(folder, 'lost/shards/00002.topk.arrow'));
    await assert.rejects(buildTeacherCache(settingsOf('lost', '2/2')), { code: 'CACHE_FILE_MISSING' });
    await assert.rejects(mergeCache(join(folder, 'lost')), { code: 'CACHE_FILE_MISSING', message: /00002\.topk/ });
  });
});
