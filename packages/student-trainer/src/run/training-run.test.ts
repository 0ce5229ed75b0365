import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { cp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { isStillhouseError } from '@stillhouse/errors';
import { makeTemporaryFolder } from '@stillhouse/testing';
import { test } from 'vitest';
import { type StepMetrics, type TrainingSettings, trainStudent } from '../index.ts';
import { writeSyntheticCache } from '../testing/synthetic-cache.ts';
import { readMetrics, TINY_STUDENT, TINY_TEACHER, tinyRun } from '../testing/tiny-run.ts';

const VOCAB = 512;

/** With the labels that the cache has, where a test names none. */
const settings = (given: Partial<TrainingSettings>): TrainingSettings => tinyRun({ labels: undefined, ...given });

const numbers = (metrics: readonly StepMetrics[]) => metrics.map(({ elapsedMs: _, dataWaitMs: __, ...rest }) => rest);

test('a run that is cut short and resumed equals a straight one, bit for bit', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const cache = join(folder, 'cache');
  await writeSyntheticCache(cache, TINY_TEACHER);
  const [straight, cut] = [join(folder, 'straight'), join(folder, 'cut')];
  const common = { cache, labels: 'topk', hiddenWeight: 0.1 } as const;
  await trainStudent(settings({ ...common, out: straight }));
  class Stop extends Error {}
  await assert.rejects(
    trainStudent(settings({ ...common, out: cut }), {
      onStep: ({ step }) => {
        if (step === 5) throw new Stop();
      },
    }),
    Stop,
  );
  assert.ok(!(await readdir(cut)).includes('config.json'), 'a run that was cut short shows no model');
  await trainStudent(settings({ ...common, out: cut, resume: true }));
  for (const file of ['model.safetensors', 'projection.safetensors', 'config.json']) {
    assert.deepEqual(await readFile(join(cut, file)), await readFile(join(straight, file)), file);
  }
  assert.deepEqual(numbers(await readMetrics(cut)), numbers(await readMetrics(straight)));
});

test('a step does not depend on how it is split, and equal settings give equal students', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const cache = join(folder, 'cache');
  await writeSyntheticCache(cache, TINY_TEACHER);
  const run = async (name: string, given: Partial<TrainingSettings>) => {
    const out = join(folder, name);
    await trainStudent(settings({ cache, out, labels: 'full', batchTokens: 60, ...given }));
    return { metrics: await readMetrics(out), weights: await readFile(join(out, 'model.safetensors')) };
  };
  const [once, again] = [await run('once', {}), await run('again', { prefetchSteps: 4 })];
  assert.deepEqual(once.weights, again.weights);
  const others = {
    split: await run('split', { accumulate: 4 }),
    bucketed: await run('bucketed', { batching: 'bucketed' }),
  };
  for (const [name, { metrics }] of Object.entries(others)) {
    once.metrics.forEach((one, i) => {
      const other = metrics[i]!;
      assert.deepEqual([one.targetTokens, one.tokens], [other.targetTokens, other.tokens]);
      for (const key of ['loss', 'kl', 'ce', 'gradNorm'] as const)
        assert.ok(
          Math.abs(one[key] - other[key]) < 2e-5 * Math.max(1, one[key]),
          `${name}, step ${one.step} ${key}: ${one[key]} against ${other[key]}`,
        );
    });
  }
  const padding = (metrics: readonly StepMetrics[]) => metrics.reduce((sum, { paddingShare }) => sum + paddingShare, 0);
  assert.ok(padding(once.metrics) < padding(others.bucketed.metrics));
  for (const { paddingShare, dataWaitMs } of once.metrics)
    assert.ok(paddingShare >= 0 && paddingShare < 1 && dataWaitMs >= 0);
});

test('top-k labels of the whole vocabulary equal full labels', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const cache = join(folder, 'cache');
  await writeSyntheticCache(cache, { ...TINY_TEACHER, k: VOCAB });
  const run = async (labels: 'full' | 'topk') => {
    const out = join(folder, labels);
    await trainStudent(settings({ cache, out, labels, steps: 3 }));
    return readMetrics(out);
  };
  const [full, topk] = [await run('full'), await run('topk')];
  full.forEach((one, i) => {
    for (const key of ['loss', 'kl', 'ce', 'gradNorm'] as const)
      assert.ok(
        Math.abs(one[key] - topk[i]![key]) < 1e-4,
        `step ${one.step} ${key}: ${one[key]} against ${topk[i]![key]}`,
      );
  });
});

test('without soft labels the loss is cross-entropy alone, over the rows of one split', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const cache = join(folder, 'cache');
  await writeSyntheticCache(cache, TINY_TEACHER, { teacher: null, labels: { topk: null, hidden: null, head: false } });
  const out = join(folder, 'out');
  await trainStudent(settings({ cache, out, labels: 'none', split: 'test', steps: 4 }));
  for (const { loss, ce, kl } of await readMetrics(out)) {
    assert.equal(loss, ce);
    assert.equal(kl, 0);
  }
});

test('what does not fit is refused before the first step, with its own code and nothing written', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const [cache, bare, narrow] = ['cache', 'bare', 'narrow'].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ];
  await writeSyntheticCache(cache, TINY_TEACHER);
  await writeSyntheticCache(bare, TINY_TEACHER, { teacher: null, labels: { topk: null, hidden: null, head: false } });
  await writeSyntheticCache(narrow, { ...TINY_TEACHER, vocabSize: 600 });
  const out = join(folder, 'out');
  const cases: readonly [code: string, given: Partial<TrainingSettings>, message: RegExp][] = [
    ['SETTING_MISSING', { out }, /--cache/],
    [
      'TEMPERATURE_NOT_IN_GRID',
      { cache, out, labels: 'topk', temperature: 3 },
      /one of 1, 2, got 3.*--tail bucket.*--temperatures 1,2,3/,
    ],
    ['LABELS_NOT_IN_CACHE', { cache: bare, out, labels: 'full' }, /expected none, got full/],
    ['LABELS_NOT_IN_CACHE', { cache: bare, out }, /--labels/],
    ['HIDDEN_NOT_IN_CACHE', { cache: bare, out, labels: 'none', hiddenWeight: 1 }, /no final hidden states/],
    ['PROJECTION_NEEDED', { cache, out, hiddenWeight: 1, projection: 'none' }, /width 64, got 24/],
    ['VOCABULARY_MISMATCH', { cache: narrow, out }, /at least 600 ids, got 512/],
    ['NO_TRAINING_ROWS', { cache, out, split: 'dev' }, /split dev/],
    ['RUN_ABSENT', { cache, out, resume: true }, /no run to resume/],
  ];
  for (const [code, given, message] of cases) {
    await assert.rejects(trainStudent(settings(given)), (error) => {
      assert.ok(isStillhouseError(error, code), `${code}: ${error}`);
      assert.match(error.message, message);
      return true;
    });
    assert.ok(!(await readdir(folder)).includes('out'), `${code} left an output folder`);
  }
  await trainStudent(settings({ cache, out, steps: 2 }));
  await assert.rejects(trainStudent(settings({ cache, out, steps: 2 })), (error) =>
    isStillhouseError(error, 'RUN_EXISTS'),
  );
  await assert.rejects(trainStudent(settings({ cache, out, steps: 2, resume: true, lr: 0.5 })), (error) => {
    assert.ok(isStillhouseError(error, 'RECIPE_DIFFERS'));
    assert.match(error.message, /lr: have 0\.001, asked 0\.5/);
    return true;
  });
});

test('a row longer than the context and an id beyond the vocabulary name the row', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const cache = join(folder, 'cache');
  await writeSyntheticCache(cache, TINY_TEACHER, { teacher: null, labels: { topk: null, hidden: null, head: false } });
  const student = join(folder, 'student');
  await cp(TINY_STUDENT, student, { recursive: true });
  const config = JSON.parse(await readFile(join(TINY_STUDENT, 'config.json'), 'utf8')) as Record<string, unknown>;
  await writeFile(join(student, 'config.json'), JSON.stringify({ ...config, max_position_embeddings: 5 }));
  await assert.rejects(
    trainStudent(settings({ cache, student, out: join(folder, 'out'), labels: 'none' })),
    (error) => {
      assert.ok(isStillhouseError(error, 'ROW_TOO_LONG'));
      assert.match(error.message, /row row-\d+.*at most 5 tokens/);
      return true;
    },
  );
});

test('a loss that is not a number stops the run with step and rows, and leaves no model', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const cache = join(folder, 'cache');
  await writeSyntheticCache(cache, TINY_TEACHER);
  const out = join(folder, 'out');
  await assert.rejects(trainStudent(settings({ cache, out, lr: 1e30, steps: 6, labels: 'topk' })), (error) => {
    assert.ok(isStillhouseError(error, 'TRAINING_DIVERGED'), String(error));
    assert.match(error.message, /step \d.*rows row-\d/);
    return true;
  });
  assert.ok(!(await readdir(out)).includes('model.safetensors'));
});

test('weights that are not numbers are refused before anything is written', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const cache = join(folder, 'cache');
  await writeSyntheticCache(cache, TINY_TEACHER);
  const student = join(folder, 'student');
  await cp(TINY_STUDENT, student, { recursive: true });
  const weights = await readFile(join(student, 'model.safetensors'));
  weights.writeFloatLE(Number.NaN, weights.length - 4);
  await writeFile(join(student, 'model.safetensors'), weights);
  await assert.rejects(trainStudent(settings({ cache, student, out: join(folder, 'out') })), (error) =>
    isStillhouseError(error, 'WEIGHT_NOT_FINITE'),
  );
  assert.ok(!(await readdir(folder)).includes('out'));
});

test("a folder that a run is under way in is no other run's, and one whose lock was taken saves nothing", async (t) => {
  const folder = await makeTemporaryFolder(t);
  const [cache, out] = [join(folder, 'cache'), join(folder, 'out')];
  await writeSyntheticCache(cache, TINY_TEACHER);
  let second: Promise<unknown> | undefined;
  await assert.rejects(
    trainStudent(settings({ cache, out, labels: 'topk' }), {
      onStep: ({ step }) => {
        if (step === 2) second = trainStudent(settings({ cache, out, labels: 'topk', resume: true }));
        second?.catch(() => undefined);
        // As one on another machine does that has seen no sign of life for long.
        if (step === 3)
          writeFileSync(join(out, '.run-lock'), JSON.stringify({ pid: 1, host: 'elsewhere', token: 'another' }));
      },
    }),
    (error) => isStillhouseError(error, 'RUN_LOCK_LOST') && error.message.includes('step 2'),
  );
  await assert.rejects(second!, (error) => isStillhouseError(error, 'RUN_IN_USE'));
  assert.deepEqual(await readdir(join(out, 'checkpoints')), ['step-00000002']);
  await rm(join(out, '.run-lock'));
  await trainStudent(settings({ cache, out, labels: 'topk', resume: true }));
  assert.ok(!(await readdir(out)).includes('.run-lock'));
});
