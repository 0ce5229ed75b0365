import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { isStillhouseError } from '@stillhouse/errors';
import { resolveSettings } from '@stillhouse/settings';
import { makeTemporaryFolder } from '@stillhouse/testing';
import { afterAll, test } from 'vitest';
import { type StepMetrics, TRAINING_SETTINGS, type TrainingSettings, trainStudent } from '../index.ts';
import { writeSyntheticCache } from '../testing/synthetic-cache.ts';

const STUDENT = new URL('../../../../test/golden/qwen2-tiny', import.meta.url).pathname;
const TEACHER = { vocabSize: 512, hiddenSize: 24, rows: 9, k: 12, temperatures: [1, 2] };
const BASE = { student: STUDENT, steps: 3, batchTokens: 30, lr: 1e-3, threads: 1 } as const;

const root = await mkdtemp(join(tmpdir(), 'stillhouse-'));
afterAll(() => rm(root, { recursive: true, force: true }));
const cache = join(root, 'cache');
await writeSyntheticCache(cache, TEACHER);
let runs = 0;

const settings = (given: Partial<TrainingSettings>) =>
  resolveSettings(TRAINING_SETTINGS, { ...BASE, cache, out: join(root, `run-${++runs}`), ...given });

async function train(given: Partial<TrainingSettings> = {}) {
  const all = settings(given);
  await trainStudent(all);
  const lines = (await readFile(join(all.out!, 'metrics.jsonl'), 'utf8')).trim().split('\n');
  const metrics = lines.map((line) => JSON.parse(line) as StepMetrics);
  return { metrics: metrics.map(({ elapsedMs: _, dataWaitMs: __, ...rest }) => rest), out: all.out! };
}

function expectNear(
  a: { readonly metrics: readonly Partial<StepMetrics>[] },
  b: typeof a,
  keys: readonly ('loss' | 'kl' | 'ce' | 'gradNorm')[] = ['loss', 'kl', 'ce', 'gradNorm'],
) {
  for (const [i, one] of a.metrics.entries()) {
    for (const key of keys) {
      const [x, y] = [one[key]!, b.metrics[i]![key]!];
      assert.ok(Math.abs(x - y) < 2e-5 * Math.max(1, Math.abs(x)), `step ${i + 1} ${key}: ${x} against ${y}`);
    }
  }
}

test('every divergence trains on full and on top-k labels, its value below the bound, and the recipe names its parameter', async () => {
  const bounds = { 'reverse-kl': Number.POSITIVE_INFINITY, js: Math.log(2), 'skew-kl': -Math.log(0.1), tv: 1 } as const;
  for (const [divergence, bound] of Object.entries(bounds) as [keyof typeof bounds, number][]) {
    for (const labels of ['full', 'topk'] as const) {
      const { metrics, out } = await train({ divergence, labels, steps: 2 });
      assert.ok(
        metrics.every(({ kl }) => kl > 0 && kl <= bound),
        `${divergence} on ${labels}`,
      );
      const recipe = JSON.parse(await readFile(join(out, 'recipe.json'), 'utf8')) as TrainingSettings;
      assert.deepEqual(
        [recipe.jsBeta, recipe.skew],
        [divergence === 'js' ? 0.5 : undefined, divergence === 'skew-kl' ? 0.1 : undefined],
      );
    }
  }
  expectNear(await train({ divergence: 'skew-kl', skew: 0 }), await train());
});

test('T and alpha go to their ends; ends that equal the starts change nothing', async () => {
  const plain = await train({ labels: 'full' });
  const still = await train({ labels: 'full', schedule: 'cosine', temperatureEnd: 2, alphaEnd: 0.7 });
  expectNear(plain, still);
  const moving = await train({ schedule: 'linear', temperature: 4, temperatureEnd: 2, alphaEnd: 0.1 });
  assert.deepEqual(
    moving.metrics.map(({ temperature }) => temperature),
    [4, 3, 2],
  );
  for (const { loss, kl, ce, temperature, alpha } of moving.metrics) {
    const wanted = alpha! * temperature! ** 2 * kl + (1 - alpha!) * ce;
    assert.ok(Math.abs(loss - wanted) < 1e-4 * loss, `${loss} against ${wanted}`);
  }
  const resting = await train({ temperature: 4 });
  expectNear({ metrics: moving.metrics.slice(0, 1) }, { metrics: resting.metrics.slice(0, 1) }, ['kl', 'ce']);
  // Refined labels take a stored log_z at one T and compute it where T moves: the same where hidden states are exact.
  const refined = await train({
    refine: 'always',
    schedule: 'linear',
    temperature: 4,
    temperatureEnd: 2,
    alphaEnd: 0.1,
  });
  moving.metrics.forEach(({ kl }, i) => {
    assert.ok(Math.abs(kl - refined.metrics[i]!.kl) < 1e-4, `step ${i + 1}`);
  });
});

test('weights of 1 are none; a weight of 3 is what three of its rows would be, over the sum of weights', async () => {
  const plain = await train({ labels: 'topk' });
  const ones = await train({ labels: 'topk', taskWeights: ['math=1', 'code=1'] });
  assert.deepEqual(ones.metrics, plain.metrics);
  // All rows, so that the step holds both tasks in known numbers; a common factor cancels.
  const whole = { labels: 'topk', steps: 1, batchTokens: 100 } as const;
  const [even, heavy, scaled, light] = [
    await train(whole),
    await train({ ...whole, taskWeights: ['math=3'] }),
    await train({ ...whole, taskWeights: ['math=6', 'code=2'], accumulate: 3, chunkPositions: 4 }),
    await train({ ...whole, taskWeights: ['math=1e-9'] }),
  ];
  expectNear(heavy, scaled);
  const { targetTokens } = even.metrics[0]!;
  assert.equal(heavy.metrics[0]!.targetTokens, targetTokens);
  // Of n targets m are math's, of mean A, the others of mean C: n·mean = m·A + (n - m)·C and
  // (n + 2m)·weighted = 3m·A + (n - m)·C. So m follows from the three means, and must be a whole number.
  const [mean, weighted, code] = [even, heavy, light].map(({ metrics }) => metrics[0]!.ce) as [number, number, number];
  const m = (targetTokens * (3 * mean - 2 * code - weighted)) / (2 * (weighted - code));
  assert.ok(Math.abs(m - Math.round(m)) < 0.05 && m > 0.5 && m < targetTokens - 0.5, `${m} of ${targetTokens} targets`);
});

test('selection of all changes nothing; that of half counts half, whatever the split and the chunk', async () => {
  const plain = await train();
  const all = await train({ selectTokens: 1 });
  assert.deepEqual(all.metrics, plain.metrics);
  const whole = { steps: 1, batchTokens: 100 } as const;
  const everything = await train(whole);
  const half = await train({ ...whole, selectTokens: 0.5 });
  const split = await train({ ...whole, selectTokens: 0.5, accumulate: 3, chunkPositions: 3 });
  expectNear(half, split);
  assert.equal(half.metrics[0]!.targetTokens, split.metrics[0]!.targetTokens);
  const share = half.metrics[0]!.targetTokens / everything.metrics[0]!.targetTokens;
  assert.ok(share >= 0.5 && share < 0.7, `share ${share}`);
  assert.ok(Math.abs(half.metrics[0]!.ce - everything.metrics[0]!.ce) > 1e-3, 'the positions left are others');
  const weighted = { ...whole, selectTokens: 0.5, taskWeights: ['math=2', 'code=2'] };
  expectNear(await train(weighted), half);
});

test('what does not go together is refused before the first step, with its own code', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const drawn = join(folder, 'drawn');
  await writeSyntheticCache(drawn, TEACHER, {
    labels: { topk: null, hidden: null, head: false, sampled: { draws: 50, temperature: 2 } },
  });
  const cases: readonly [code: string, given: Partial<TrainingSettings>, message: RegExp][] = [
    ['DIVERGENCE_NOT_FOR_LABELS', { cache: drawn, divergence: 'reverse-kl' }, /not drawn.*got sampled/],
    [
      'DIVERGENCE_NOT_FOR_LABELS',
      { labels: 'topk', tail: 'renormalise', divergence: 'tv' },
      /do not add up to 1.*--tail tail or bucket, got topk with --tail renormalise/,
    ],
    ['SETTING_UNUSED', { jsBeta: 0.3 }, /--js-beta.*--divergence js, got forward-kl/],
    ['SETTING_UNUSED', { divergence: 'js', skew: 0.3 }, /--skew.*got js/],
    ['SETTING_UNUSED', { labels: 'none', divergence: 'js' }, /--divergence js: without soft labels/],
    ['SETTING_UNUSED', { labels: 'none', schedule: 'linear', alphaEnd: 0 }, /--schedule linear: without soft/],
    ['SETTING_UNUSED', { alphaEnd: 0.2 }, /constant schedule/],
    [
      'TEMPERATURE_SCHEDULE_NOT_FOR_LABELS',
      { labels: 'topk', schedule: 'linear', temperatureEnd: 1 },
      /T = 2 throughout.*got topk labels with T from 2 to 1/,
    ],
    ['TEMPERATURE_SCHEDULE_NOT_FOR_LABELS', { cache: drawn, schedule: 'linear', temperatureEnd: 1 }, /sampled/],
    ['TASK_NOT_IN_CACHE', { taskWeights: ['maths=2'] }, /some of code, math, got maths/],
    ['SETTING_INVALID', { taskWeights: ['math=2', 'math=3'] }, /more than one weight/],
  ];
  for (const [code, given, message] of cases) {
    const out = join(folder, 'out');
    await assert.rejects(trainStudent(settings({ ...given, out })), (error) => {
      assert.ok(isStillhouseError(error, code), `${code}: ${error}`);
      assert.match(error.message, message);
      return true;
    });
    assert.ok(!(await readdir(folder)).includes('out'), `${code} left an output folder`);
  }
  const malformed: readonly object[] = [
    ...['math', 'math=', '=2', 'math=0', 'math=-1', 'math=x'].map((entry) => ({ taskWeights: [entry] })),
    ...[{ selectTokens: 0 }, { selectTokens: 1.5 }, { jsBeta: 0 }, { jsBeta: 1 }, { skew: 1 }, { divergence: 'kl' }],
  ];
  for (const given of malformed)
    assert.throws(
      () => settings(given),
      (error) => isStillhouseError(error, 'SETTING_INVALID'),
    );
});

test('on top-k labels T moves with the bucket, and alpha with any', async () => {
  await train({ labels: 'topk', tail: 'bucket', schedule: 'cosine', temperatureEnd: 1, steps: 2 });
  await train({ labels: 'topk', schedule: 'cosine', alphaEnd: 0, steps: 2 });
});
