import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { isStillhouseError } from '@stillhouse/errors';
import { resolveSettings } from '@stillhouse/settings';
import type { CacheDescription } from '@stillhouse/teacher-cache';
import { makeTemporaryFolder } from '@stillhouse/testing';
import { test } from 'vitest';
import { type StepMetrics, TRAINING_SETTINGS, type TrainingSettings, trainStudent } from '../index.ts';
import { writeSyntheticCache } from '../testing/synthetic-cache.ts';

const STUDENT = new URL('../../../../test/golden/qwen2-tiny', import.meta.url).pathname;
const TEACHER = { vocabSize: 512, hiddenSize: 24, rows: 6, k: 12, temperatures: [1, 2] };
const TOPK = { k: TEACHER.k, temperatures: TEACHER.temperatures };

const settings = (given: Partial<TrainingSettings>): TrainingSettings =>
  resolveSettings(TRAINING_SETTINGS, { student: STUDENT, steps: 3, batchTokens: 24, lr: 1e-3, threads: 1, ...given });

const withLabels = (labels: Partial<CacheDescription['labels']>) => ({
  labels: { topk: null, hidden: null, head: false, ...labels },
});

async function train(given: Partial<TrainingSettings> & { readonly out: string }) {
  let labels = '';
  await trainStudent(settings(given), {
    onPlan: (plan) => {
      labels = plan.labels;
    },
  });
  const lines = (await readFile(join(given.out, 'metrics.jsonl'), 'utf8')).trim().split('\n');
  const recipe = JSON.parse(await readFile(join(given.out, 'recipe.json'), 'utf8')) as TrainingSettings;
  return { labels, recipe, metrics: lines.map((line) => JSON.parse(line) as StepMetrics) };
}

const furthest = (
  a: readonly StepMetrics[],
  b: readonly StepMetrics[],
  keys: readonly ('loss' | 'kl' | 'gradNorm')[],
) => Math.max(...a.flatMap((one, i) => keys.map((key) => Math.abs(one[key] - b[i]![key]))));

for (const temperature of [2, 3]) {
  test(`exact hidden states refined by top-k labels train as they do alone, T = ${temperature}`, async (t) => {
    const folder = await makeTemporaryFolder(t);
    const cache = join(folder, 'cache');
    await writeSyntheticCache(cache, TEACHER);
    const common = { cache, labels: 'full', temperature } as const;
    const refined = await train({ ...common, refine: 'always', out: join(folder, 'refined') });
    const plain = await train({ ...common, out: join(folder, 'plain') });
    assert.equal(refined.labels, 'full, the head from top-k');
    assert.equal(plain.labels, 'full', 'float32 states need no refinement');
    assert.deepEqual([refined.recipe.refine, plain.recipe.refine], ['always', 'never']);
    assert.ok(furthest(refined.metrics, plain.metrics, ['loss', 'kl', 'gradNorm']) < 1e-4);
  });
}

test('hidden states in int8 are refined where the cache has top-k labels, and come closer to the teacher', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const [exact, lossy, alone] = ['exact', 'lossy', 'alone'].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ];
  const hidden = { layers: ['final'], dtype: 'int8' } as const;
  await writeSyntheticCache(exact, TEACHER);
  await writeSyntheticCache(lossy, TEACHER, withLabels({ topk: TOPK, hidden, head: true }));
  await writeSyntheticCache(alone, TEACHER, withLabels({ hidden, head: true }));
  const run = (cache: string, name: string, given: Pick<Partial<TrainingSettings>, 'refine'> = {}) =>
    train({ cache, out: join(folder, name), steps: 1, temperature: 1, ...given });
  const wanted = await run(exact, 'a');
  const refined = await run(lossy, 'b');
  const plain = await run(lossy, 'c', { refine: 'never' });
  assert.equal(refined.labels, 'full, the head from top-k');
  assert.equal((await run(alone, 'd')).labels, 'full', 'nothing to refine with');
  const offBy = ({ metrics }: { readonly metrics: readonly StepMetrics[] }) =>
    furthest(metrics, wanted.metrics, ['kl']);
  const [near, far] = [offBy(refined), offBy(plain)];
  assert.ok(near < far && far < 0.1, `off by ${near} refined, by ${far} alone`);
});

test('draws in proportion to the distribution train as the distribution does', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const [cache, drawn] = [join(folder, 'cache'), join(folder, 'drawn')];
  await writeSyntheticCache(cache, TEACHER);
  await writeSyntheticCache(drawn, TEACHER, withLabels({ sampled: { draws: 60_000, temperature: 2 } }));
  const full = await train({ cache, labels: 'full', out: join(folder, 'full') });
  const sampled = await train({ cache: drawn, out: join(folder, 'sampled') });
  assert.equal(sampled.labels, 'sampled', 'the only labels there');
  // 512 ids share 60,000 draws: the counts are rounded to some thousandths.
  const difference = furthest(full.metrics, sampled.metrics, ['loss', 'kl', 'gradNorm']);
  assert.ok(difference < 0.01, `off by ${difference}`);
});

test('labels and settings that do not go together are refused before the first step', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const [both, hidden, drawn] = ['both', 'hidden', 'drawn'].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ];
  const out = join(folder, 'out');
  const float32 = { layers: ['final'], dtype: 'float32' } as const;
  await writeSyntheticCache(both, TEACHER);
  await writeSyntheticCache(hidden, TEACHER, withLabels({ hidden: float32, head: true }));
  await writeSyntheticCache(drawn, TEACHER, withLabels({ sampled: { draws: 50, temperature: 1 } }));
  const cases: readonly [code: string, given: Partial<TrainingSettings>, message: RegExp][] = [
    ['REFINEMENT_NOT_IN_CACHE', { cache: hidden, refine: 'always' }, /no top-k labels.*--labels topk,hidden/],
    ['SETTING_NOT_FOR_LABELS', { cache: both, labels: 'topk', refine: 'always' }, /expected --labels full, got topk/],
    ['LABELS_NOT_IN_CACHE', { cache: both, labels: 'sampled' }, /expected full or topk or none, got sampled/],
    ['LABELS_NOT_IN_CACHE', { cache: drawn, labels: 'full' }, /expected sampled or none, got full/],
    ['TEMPERATURE_NOT_DRAWN', { cache: drawn }, /expected 1, got 2.*--temperature 1/],
  ];
  for (const [code, given, message] of cases) {
    await assert.rejects(trainStudent(settings({ out, ...given })), (error) => {
      assert.ok(isStillhouseError(error, code), `${code}: ${error}`);
      assert.match(error.message, message);
      return true;
    });
    assert.ok(!(await readdir(folder)).includes('out'), `${code} left an output folder`);
  }
});
