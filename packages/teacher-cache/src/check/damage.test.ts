import assert from 'node:assert/strict';
import { cp, mkdir, readFile, rename, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, test } from 'vitest';
import { canonicalJson } from '../format/canonical-json.ts';
import { digestManifest, listFiles } from '../format/manifest.ts';
import { type CacheManifest, openCache, readManifest, verifyCache } from '../index.ts';
import { buildRandomCache, type RandomCacheShape } from '../testing/random-cache.ts';
import { inFolder } from '../testing/scratch-folder.ts';

const shape: RandomCacheShape = {
  seed: 31,
  rows: 5,
  rowsPerShard: 3,
  maxTokens: 12,
  vocabSize: 30,
  hiddenSize: 8,
  k: 6,
};

// biome-ignore lint/suspicious/noExplicitAny: manifests are damaged here in ways that types forbid
type Damageable = any;

let sound = '';
let release = () => {};
beforeAll(
  () =>
    new Promise<void>((resolve, reject) => {
      inFolder(async (folder) => {
        await buildRandomCache(folder, shape);
        sound = folder;
        resolve();
        await new Promise<void>((done) => {
          release = done;
        });
      }).catch(reject);
    }),
);
afterAll(() => release());

/** A copy of a sound cache to damage. */
const damaged = (work: (folder: string) => Promise<void>) =>
  inFolder(async (folder) => {
    await cp(sound, folder, { recursive: true });
    await work(folder);
  });

async function editManifest(folder: string, edit: (manifest: Damageable) => void, seal = true): Promise<void> {
  const path = join(folder, 'manifest.json');
  const manifest = JSON.parse(await readFile(path, 'utf8'));
  edit(manifest);
  if (seal) manifest.digest = digestManifest(manifest);
  await writeFile(path, JSON.stringify(manifest));
}

test('one flipped byte in any file: verify names exactly that file, reading refuses it', async () => {
  const files = ['manifest.json', ...[...listFiles(await readManifest(sound))].map(({ file }) => file.path)];
  assert.equal(files.length, 2 + 1 + 1 + 2 + 2 * 4);
  for (const file of files) {
    const size = (await readFile(join(sound, file))).length;
    for (const offset of [0, Math.floor(size / 3), Math.floor(size / 2), size - 2]) {
      await damaged(async (folder) => {
        const bytes = await readFile(join(folder, file));
        bytes[offset]! ^= 1 << (offset % 8);
        await writeFile(join(folder, file), bytes);
        const { ok, problems } = await verifyCache(folder);
        assert.equal(ok, false);
        assert.deepEqual([...new Set(problems.map((problem) => problem.file))], [file], `byte ${offset}`);
        if (file === 'manifest.json') await assert.rejects(openCache(folder), { code: 'CACHE_MANIFEST_INVALID' });
        if (file.startsWith('shards/')) {
          const readAll = async () => {
            const cache = await openCache(folder);
            try {
              for await (const _ of cache.rows());
            } finally {
              await cache.close();
            }
          };
          await assert.rejects(readAll(), { code: 'CACHE_FILE_DAMAGED', message: new RegExp(file) });
        }
      });
    }
  }
});

test('every byte of the manifest counts', async () => {
  const bytes = await readFile(join(sound, 'manifest.json'));
  const parsed = canonicalJson(JSON.parse(bytes.toString()));
  await damaged(async (folder) => {
    for (let offset = 0; offset < bytes.length; offset += 1 + (offset % 5)) {
      const copy = Buffer.from(bytes);
      copy[offset]! ^= 1 << (offset % 7);
      await writeFile(join(folder, 'manifest.json'), copy);
      await assert.rejects(readManifest(folder), { name: 'StillhouseError' }, `byte ${offset}`);
    }
    await writeFile(join(folder, 'manifest.json'), parsed);
    assert.equal((await readManifest(folder)).digest, (await readManifest(sound)).digest);
  });
});

test('truncated, missing and stray files are named', () =>
  damaged(async (folder) => {
    await truncate(join(folder, 'shards/00001.topk.arrow'), 100);
    await assert.rejects(openCache(folder), { code: 'CACHE_FILE_DAMAGED', message: /00001\.topk\.arrow.*100 bytes/ });
    await rm(join(folder, 'shards/00000.hidden-2.arrow'));
    await writeFile(join(folder, 'shards/00007.rows.arrow'), 'x');
    await writeFile(join(folder, 'notes.txt'), 'x');
    await assert.rejects(openCache(folder), { code: 'CACHE_FILE_MISSING', message: /00000\.hidden-2\.arrow/ });
    const { problems } = await verifyCache(folder);
    assert.deepEqual(problems.map(({ file }) => file).sort(), [
      'notes.txt',
      'shards/00000.hidden-2.arrow',
      'shards/00001.topk.arrow',
      'shards/00007.rows.arrow',
    ]);
    const cache = await openCache(folder, { groups: ['rows', 'hidden-final'] });
    const { hidden, topk } = await cache.readRow(0);
    assert.deepEqual([[...hidden!.keys()], topk], [['final'], undefined]);
    await assert.rejects(cache.readRow(0, { topk: true }), { code: 'CACHE_GROUP_ABSENT', message: /as it was opened/ });
    await assert.rejects(cache.readRow(0, { hidden: [7] }), { code: 'CACHE_GROUP_ABSENT', message: /hidden-7/ });
    await assert.rejects(cache.readOutputMatrix(), { code: 'CACHE_GROUP_ABSENT', message: /head/ });
    await assert.rejects(cache.readRow(5), { code: 'CACHE_ROW_UNKNOWN' });
    assert.throws(() => cache.indexOf('row 9'), { code: 'CACHE_ROW_UNKNOWN', message: /"row 9"/ });
    assert.equal(cache.tokenizerFolder, null);
    await cache.close();
  }));

test('files of other content under a correct hash are found by what they say', async () => {
  const swap = async (folder: string, a: string, b: string) => {
    await rename(join(folder, a), join(folder, 'swap'));
    await rename(join(folder, b), join(folder, a));
    await rename(join(folder, 'swap'), join(folder, b));
  };
  const exchange = (a: Damageable, b: Damageable) => {
    const { path, ...content } = a;
    Object.assign(a, b, { path });
    Object.assign(b, content);
  };
  // The labels of one shard under the rows of another.
  await damaged(async (folder) => {
    await swap(folder, 'shards/00000.topk.arrow', 'shards/00001.topk.arrow');
    await editManifest(folder, ({ shards }) => exchange(shards[0].files.topk, shards[1].files.topk));
    const { problems } = await verifyCache(folder);
    assert.deepEqual(
      [...new Set(problems.map(({ file }) => file))],
      ['shards/00000.topk.arrow', 'shards/00001.topk.arrow'],
    );
    const cache = await openCache(folder);
    await assert.rejects(cache.readRow(0), { code: 'CACHE_FILE_UNREADABLE', message: /topk does not belong/ });
    await cache.close();
  });
  // Columns of another group.
  await damaged(async (folder) => {
    await swap(folder, 'shards/00000.topk.arrow', 'shards/00000.rows.arrow');
    await editManifest(folder, ({ shards }) => exchange(shards[0].files.topk, shards[0].files.rows));
    const { problems } = await verifyCache(folder);
    assert.match(
      problems.map(({ file, problem }) => `${file}: ${problem}`).join('\n'),
      /rows\.arrow: column input_ids/,
    );
    await assert.rejects(openCache(folder), { code: 'CACHE_FILE_UNREADABLE', message: /column input_ids/ });
  });
  // Not Arrow at all, and hashing switched off.
  await damaged(async (folder) => {
    const path = join(folder, 'shards/00000.hidden-final.arrow');
    await writeFile(path, Buffer.alloc((await readFile(path)).length, 7));
    const cache = await openCache(folder, { verifyOnRead: 'never' });
    await assert.rejects(cache.readRow(0), { code: 'CACHE_FILE_UNREADABLE', message: /hidden-final/ });
    assert.ok((await cache.readRow(0, { topk: true })).topk);
    await cache.close();
  });
});

test('a manifest is not believed: paths, counts, newer versions, things that are no cache', async () => {
  const cases: readonly (readonly [string, RegExp, (manifest: Damageable) => void])[] = [
    ['CACHE_VERSION_TOO_NEW', /format version 4 or lower, got 99/, (m) => (m.version = 99)],
    ['CACHE_MANIFEST_INVALID', /format/, (m) => (m.format = 'other')],
    ['CACHE_MANIFEST_INVALID', /tokenizer\[0\]\.path/, (m) => (m.tokenizer[0].path = 'tokenizer/../../etc/passwd')],
    ['CACHE_MANIFEST_INVALID', /tokenizer\[0\]\.path/, (m) => (m.tokenizer[0].path = '/etc/passwd')],
    ['CACHE_MANIFEST_INVALID', /outputMatrix\.path/, (m) => (m.outputMatrix.path = '../x')],
    ['CACHE_MANIFEST_INVALID', /files\.rows\.path/, (m) => (m.shards[0].files.rows.path = 'shards/00001.rows.arrow')],
    ['CACHE_MANIFEST_INVALID', /firstRow/, (m) => (m.shards[1].firstRow = 2)],
    ['CACHE_MANIFEST_INVALID', /rowCount/, (m) => (m.shards[1].rowCount = 3)],
    ['CACHE_MANIFEST_INVALID', /rows\.stored/, (m) => m.shards.pop()],
    ['CACHE_MANIFEST_INVALID', /shards\[0\]\.files/, (m) => delete m.shards[0].files.topk],
    ['CACHE_MANIFEST_INVALID', /scales/, (m) => m.scales.pop()],
    ['CACHE_MANIFEST_INVALID', /scales/, (m) => (m.scales[1] = m.scales[0])],
    ['CACHE_MANIFEST_INVALID', /sha256/, (m) => (m.outputMatrix.sha256 = 'none')],
    ['CACHE_MANIFEST_INVALID', /outputMatrix/, (m) => (m.outputMatrix = null)],
    ['CACHE_MANIFEST_INVALID', /outputMatrix\.rows/, (m) => (m.outputMatrix.rows = 31)],
    ['CACHE_MANIFEST_INVALID', /labels\.topk\.k: .*fewer ids/, (m) => (m.description.labels.topk.k = 31)],
    ['CACHE_MANIFEST_INVALID', /no such layer/, (m) => (m.description.labels.hidden.layers = ['final', 5])],
    [
      'CACHE_MANIFEST_INVALID',
      /final, 0 to 4 or attention\.1 to attention\.4, got attention\.5/,
      (m) => (m.description.labels.hidden.layers = ['attention.5']),
    ],
    ['CACHE_MANIFEST_INVALID', /layers/, (m) => (m.description.labels.hidden.layers = ['attention.0'])],
    ['CACHE_MANIFEST_INVALID', /description\.teacher\.kind/, (m) => (m.description.teacher.kind = 'oracle')],
    ['CACHE_MANIFEST_INVALID', /description\.teacher\.vocabSize/, (m) => (m.description.teacher.vocabSize = 'many')],
  ];
  for (const [code, message, edit] of cases) {
    await damaged(async (folder) => {
      await editManifest(folder, edit);
      await assert.rejects(openCache(folder), { code, message });
      const { problems } = await verifyCache(folder);
      assert.deepEqual(
        problems.map(({ file }) => file),
        ['manifest.json'],
      );
    });
  }
  await damaged(async (folder) => {
    await editManifest(folder, (m) => (m.description.data.name = 'other'), false);
    await assert.rejects(openCache(folder), { code: 'CACHE_MANIFEST_INVALID', message: /digest/ });
    await writeFile(join(folder, 'manifest.json'), '{"format":');
    await assert.rejects(openCache(folder), { code: 'CACHE_MANIFEST_INVALID', message: /expected JSON/ });
    await rm(join(folder, 'manifest.json'));
    await assert.rejects(openCache(folder), { code: 'CACHE_NOT_FOUND' });
    await assert.rejects(openCache(join(folder, 'nowhere')), { code: 'CACHE_NOT_FOUND' });
    assert.equal((await verifyCache(folder)).problems[0]!.file, 'manifest.json');
  });
});

test('a folder reached by a path that ends in a slash, or through ., is the same cache', async () => {
  const { digest } = (await readManifest(sound)) as CacheManifest;
  for (const path of [`${sound}/`, `${join(sound, 'shards')}/..`]) {
    const report = await verifyCache(path);
    assert.deepEqual([report.problems, report.digest], [[], digest]);
  }
  await inFolder(async (folder) => {
    await mkdir(folder);
    await assert.rejects(openCache(folder), { code: 'CACHE_NOT_FOUND' });
  });
});
