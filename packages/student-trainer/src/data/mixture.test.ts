import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { readModelConfig } from '@stillhouse/checkpoint';
import { isStillhouseError } from '@stillhouse/errors';
import { collectLabels } from '@stillhouse/objectives';
import { resolveSettings } from '@stillhouse/settings';
import { openCache } from '@stillhouse/teacher-cache';
import { expectClose, makeTemporaryFolder } from '@stillhouse/testing';
import { test } from 'vitest';
import { TRAINING_SETTINGS, type TrainingSettings, type TrainingStart, trainStudent } from '../index.ts';
import { type SyntheticTeacher, writeSyntheticCache } from '../testing/synthetic-cache.ts';
import { readMetrics, stopAt } from '../testing/tiny-run.ts';
import { openDataOrder } from './data-order.ts';
import { loadStepData } from './step-data.ts';
import { openCaches, orderSources, readSources, resolveSources } from './training-sources.ts';

const STUDENT = new URL('../../../../test/golden/qwen2-tiny', import.meta.url).pathname;
const TEACHER: SyntheticTeacher = { vocabSize: 512, hiddenSize: 24, rows: 8, k: 12, temperatures: [1, 2] };

function settings(given: Partial<TrainingSettings>): TrainingSettings & { cache: string; student: string } {
  const all = { student: STUDENT, steps: 6, batchTokens: 30, lr: 1e-3, threads: 1, checkpointEvery: 2, ...given };
  return resolveSettings(TRAINING_SETTINGS, all) as TrainingSettings & { cache: string; student: string };
}

/** Caches of one teacher in a folder, by name; each with rows of its own. */
async function writeCaches(
  folder: string,
  caches: Readonly<Record<string, readonly [Partial<SyntheticTeacher>, Parameters<typeof writeSyntheticCache>[2]?]>>,
) {
  const paths: string[] = [];
  for (const [i, [name, [teacher, changes]]] of Object.entries(caches).entries()) {
    const path = join(folder, name);
    await writeSyntheticCache(path, { ...TEACHER, rowSeed: 10 + i, ...teacher }, changes);
    paths.push(path);
  }
  return paths;
}

const storeFinal = (dtype: 'float32' | 'int8' | 'coded') => ({
  layers: ['final'] as const,
  dtype,
  ...(dtype === 'coded' ? { codedBytes: 40 } : {}),
});

test('a run on two caches by weight goes on bit for bit, and says what it learnt from', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const [a, b] = (await writeCaches(folder, { a: [{ rows: 5 }], b: [{ rows: 20 }] })) as [string, string];
  const [straight, cut] = [join(folder, 'straight'), join(folder, 'cut')];
  const common = { cache: `${a},${b}`, cacheWeights: [3, 1], labels: 'full', hiddenWeight: 0.1, steps: 9 } as const;
  let plan: TrainingStart | undefined;
  const result = await trainStudent(settings({ ...common, out: straight }), {
    onPlan: (one) => {
      plan = one;
    },
  });
  const digests = await Promise.all(
    [a, b].map(async (path) => {
      const cache = await openCache(path);
      await cache.close();
      return cache.digest;
    }),
  );
  assert.equal(result.cacheDigest, digests.join());
  assert.equal(plan!.cacheDigest, digests.join());
  assert.deepEqual(
    plan!.caches.map(({ location, digest, rows, share, epochs }) => [location, digest, rows, share, epochs]),
    [
      [a, digests[0], 5, 0.75, 0],
      [b, digests[1], 20, 0.25, 0],
    ],
  );
  assert.equal(plan!.rows, 25);
  const seen = result.caches.map(({ tokens, epochs }) => tokens * epochs);
  assert.ok(Math.abs(seen[0]! / (seen[0]! + seen[1]!) - 0.75) < 0.06, `shares ${seen}`);
  assert.ok(result.caches[0]!.epochs > 2 && result.caches[1]!.epochs < 1);

  const stopped = await trainStudent(settings({ ...common, out: cut }), stopAt(4));
  assert.equal(stopped.steps, 4);
  await trainStudent(settings({ ...common, out: cut, resume: true, accumulate: 1, prefetchSteps: 5 }));
  assert.deepEqual(await readFile(join(cut, 'model.safetensors')), await readFile(join(straight, 'model.safetensors')));
  const { caches } = JSON.parse(await readFile(join(cut, 'training.json'), 'utf8')) as typeof result;
  assert.deepEqual(caches, result.caches);
});

test('a mixture that differs in a cache, a weight or the order of caches does not go on', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const [a, b, c] = (await writeCaches(folder, { a: [{}], b: [{}], c: [{}] })) as [string, string, string];
  const out = join(folder, 'out');
  const common = { cacheWeights: [1, 1], labels: 'topk', steps: 4, out } as const;
  await trainStudent(settings({ ...common, cache: `${a},${b}` }), stopAt(2));
  const cases = [
    ['CHECKPOINT_MISMATCH', { cache: `${a},${c}` }, /another cache; expected \w{64},\w{64}, got \w{64},\w{64}/],
    ['CHECKPOINT_MISMATCH', { cache: `${b},${a}` }, /another cache/],
    ['RECIPE_DIFFERS', { cache: a, cacheWeights: undefined }, /cacheWeights: have \[1,1\]/],
    ['RECIPE_DIFFERS', { cache: `${a},${b}`, cacheWeights: [2, 1] }, /cacheWeights: have \[1,1\], asked \[2,1\]/],
  ] as const;
  for (const [code, given, message] of cases) {
    await assert.rejects(trainStudent(settings({ ...common, ...given, resume: true })), (error) => {
      assert.ok(isStillhouseError(error, code), String(error));
      assert.match(String(error), message);
      return true;
    });
  }
});

test('every row brings the labels of its own cache, whatever differs between the caches', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const labels = (dtype: 'int8' | 'coded', temperatures: readonly number[], k: number) => ({
    labels: { topk: { k, temperatures }, hidden: storeFinal(dtype), head: true },
  });
  const paths = await writeCaches(folder, {
    fine: [{ channelRms: 2, k: 5, temperatures: [1, 2] }, labels('int8', [1, 2], 5)],
    coarse: [{ channelRms: 5, temperatures: [2, 4] }, labels('int8', [2, 4], 12)],
    coded: [{ step: 0.05 }, labels('coded', [1, 2], 12)],
  });
  const config = await readModelConfig(STUDENT);
  for (const kind of ['full', 'topk'] as const) {
    const all = settings({
      cache: paths.join(),
      labels: kind,
      refine: kind === 'full' ? 'always' : 'auto',
      taskWeights: ['math=2'],
      batchTokens: 90,
    });
    const opened = await openCaches(all, (location) => openCache(location));
    t.onTestFinished(opened.close);
    const { sources, resolved } = await resolveSources(opened, all, config);
    const stepSources = readSources({ sources, resolved }, all);
    const order = openDataOrder(orderSources(sources), 1);
    const options = { batchTokens: 120, accumulate: 2, batching: 'packed', columnCost: 1e-3, selectTokens: 1 } as const;
    const data = await loadStepData(stepSources, order, order.start, options);
    const givenUp = loadStepData(stepSources, order, order.start, {
      ...options,
      signal: AbortSignal.abort(),
    });
    await assert.rejects(givenUp, { name: 'AbortError' });
    assert.equal(new Set(data.rowIds.map((id) => id.split(' of ')[1])).size, 3);
    let first = 0;
    for (const { sequences, labels: joined } of data.microBatches) {
      let at = 0;
      for (const [index, sequence] of sequences.entries()) {
        const [id, location] = data.rowIds[first + index]!.split(' of ') as [string, string];
        const source = sources.findIndex((one) => one.location === location);
        const { cache } = sources[source]!;
        const labelled = await cache.readRow(cache.indexOf(id));
        assert.deepEqual(sequence, labelled.row.inputIds);
        const own = collectLabels([labelled], stepSources[source]!.labels);
        for (let n = 0; n < own.count; n++, at++) {
          assert.equal(joined.rows[at], index);
          assert.equal(joined.positions[at], own.positions[n]);
          assert.equal(joined.labels[at], own.labels[n]);
          assert.equal(joined.weights![at], own.weights![n]);
          for (const [name, array] of own.teacher) {
            const [width, theirs] = [array.width ?? 1, joined.teacher.get(name)!];
            assert.equal(theirs.width, array.width, name);
            assert.deepEqual(
              theirs.data.slice(at * width, (at + 1) * width),
              array.data.slice(n * width, (n + 1) * width),
              name,
            );
          }
        }
      }
      assert.equal(at, joined.count);
      first += sequences.length;
    }
  }
});

test('coded caches train as exact ones do: with one codebook on its codes, with several on decoded states', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const labels = (dtype: 'float32' | 'coded') => ({ labels: { topk: null, hidden: storeFinal(dtype), head: true } });
  const [a, b, codedA, codedB, otherB] = (await writeCaches(folder, {
    a: [{ rowSeed: 1 }, labels('float32')],
    b: [{ rowSeed: 2 }, labels('float32')],
    codedA: [{ rowSeed: 1 }, labels('coded')],
    codedB: [{ rowSeed: 2 }, labels('coded')],
    otherB: [{ rowSeed: 2, step: 0.03 }, labels('coded')],
  })) as [string, string, string, string, string];
  const run = async (name: string, ...caches: readonly string[]) => {
    const out = join(folder, name);
    await trainStudent(settings({ cache: caches.join(), out, labels: 'full', steps: 3 }));
    return (await readMetrics(out)).flatMap(({ loss, kl, gradNorm }) => [loss, kl, gradNorm]);
  };
  const exact = await run('exact', a, b);
  for (const [name, ...caches] of [
    ['one-codebook', codedA, codedB],
    ['two-codebooks', codedA, otherB],
    ['coded-and-exact', codedA, b],
  ] as const) {
    expectClose(await run(name, ...caches), exact, { relative: 2e-3, where: name });
  }
});

test('top-k labels of different teachers mix; what has to be one is refused by name', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const hidden = (dtype: 'float32' | 'int8') => ({
    labels: { topk: { k: 12, temperatures: [1, 2] }, hidden: storeFinal(dtype), head: true },
  });
  const bare = { labels: { topk: { k: 12, temperatures: [1, 2] }, hidden: null, head: false } };
  const paths = await writeCaches(folder, {
    a: [{}],
    other: [{ matrixSeed: 9, rows: 4 }],
    wide: [{ hiddenSize: 32 }],
    int8: [{}, hidden('int8')],
    topk: [{}, bare],
    grid: [{ temperatures: [1] }, { labels: { topk: { k: 12, temperatures: [1] }, hidden: null, head: false } }],
  });
  const [a, other, wide, int8, topk, grid] = paths as [string, string, string, string, string, string];
  const out = join(folder, 'out');
  await trainStudent(settings({ cache: `${a},${other}`, out, labels: 'topk', steps: 2 }));
  // Left open, the labels are the best that every cache has.
  let plan: TrainingStart | undefined;
  const onPlan = (one: TrainingStart) => {
    plan = one;
  };
  await trainStudent(settings({ cache: `${a},${topk}`, out: join(folder, 'open'), steps: 1 }), { onPlan });
  assert.equal(plan!.labels, 'topk');
  const rejected = join(folder, 'rejected');
  const cases: readonly [code: string, given: Partial<TrainingSettings>, message: RegExp][] = [
    ['CACHES_DIFFER', { cache: `${a},${other}`, labels: 'full' }, /other: the teacher's output matrix.*--labels topk/],
    ['CACHES_DIFFER', { cache: `${a},${wide}`, labels: 'full' }, /output matrix/],
    [
      'CACHES_DIFFER',
      { cache: `${a},${int8}`, labels: 'full' },
      /int8: whether full labels are refined.*--refine never/,
    ],
    ['CACHES_DIFFER', { cache: `${a},${other}`, labels: 'topk', hiddenWeight: 1 }, /teacher, whose hidden states/],
    [
      'LABELS_NOT_IN_CACHE',
      { cache: `${a},${topk}`, labels: 'full' },
      /topk holds no such labels; expected topk or none/,
    ],
    ['TEMPERATURE_NOT_IN_GRID', { cache: `${a},${grid}`, labels: 'topk' }, /grid knows the exact tail at other/],
    ['NO_TRAINING_ROWS', { cache: `${a},${topk}`, split: 'dev' }, /\/a: no row is of split dev/],
    ['SETTING_INVALID', { cache: `${a},${a}` }, /named twice/],
    ['SETTING_INVALID', { cache: `${a},${folder}/./a` }, /are the same cache/],
    ['SETTING_INVALID', { cache: `${a},` }, /has no name/],
    ['SETTING_INVALID', { cache: `${a},${topk}`, cacheWeights: [1, 2, 3] }, /expected 2 weights.*got 1,2,3/],
    ['SETTING_UNUSED', { cache: a, cacheWeights: [1] }, /one cache/],
    ['SETTING_CONFLICT', { cache: a, steps: 3, epochs: 1 }, /--steps 3 and --epochs 1/],
    ['SETTING_MISSING', { cache: `${a},${topk}`, split: 'train', evalEvery: 1, evalSplit: 'test' }, /--eval-cache/],
    ['HELD_OUT_OVERLAP', { cache: `${a},${topk}`, evalEvery: 1, evalCache: topk }, /learn from the rows/],
    ['TASK_NOT_IN_CACHE', { cache: `${a},${topk}`, taskWeights: ['maths=2'] }, /maths/],
  ];
  for (const [code, given, message] of cases) {
    await assert.rejects(trainStudent(settings({ out: rejected, ...given })), (error) => {
      assert.ok(isStillhouseError(error, code), `${code}: ${error}`);
      assert.match(error.message, message);
      return true;
    });
  }
  for (const weight of [0, -1, Number.NaN, 'much']) {
    assert.throws(() => settings({ cache: `${a},${topk}`, cacheWeights: [1, weight as number] }), {
      code: 'SETTING_INVALID',
      message: /--cache-weights.*numbers above 0/,
    });
  }
});

test('epochs give the number of steps, and without either it is one', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const paths = await writeCaches(folder, { a: [{ rows: 5 }], b: [{ rows: 9 }] });
  const run = async (name: string, given: Partial<TrainingSettings>) => {
    const out = join(folder, name);
    const { steps, caches } = await trainStudent(
      settings({ cache: paths.join(), labels: 'topk', steps: undefined, out, ...given }),
    );
    const recipe = JSON.parse(await readFile(join(out, 'recipe.json'), 'utf8')) as TrainingSettings;
    assert.deepEqual([recipe.steps, recipe.epochs], [steps, undefined]);
    return { steps, epochs: caches.map(({ epochs }) => epochs) };
  };
  const [once, one, two] = [await run('once', {}), await run('one', { epochs: 1 }), await run('two', { epochs: 2 })];
  assert.deepEqual(one, once);
  // Each row once, and what of the last step is more than that.
  for (const epochs of one.epochs) assert.ok(epochs >= 1 && epochs < 1.7, String(epochs));
  for (const epochs of two.epochs) assert.ok(epochs >= 2 && epochs < 2.7, String(epochs));
});
