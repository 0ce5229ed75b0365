import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { isStillhouseError } from '@stillhouse/errors';
import { resolveSettings } from '@stillhouse/settings';
import { afterAll, test } from 'vitest';
import {
  resolveStages,
  type StagedSettings,
  type StageSummary,
  type StepMetrics,
  TRAINING_SETTINGS,
  type TrainingSettings,
  trainStudent,
} from '../index.ts';
import { writeSyntheticCache } from '../testing/synthetic-cache.ts';
import { readMetrics, stopAt } from '../testing/tiny-run.ts';

const STUDENT = new URL('../../../../test/golden/qwen2-tiny', import.meta.url).pathname;
const root = await mkdtemp(join(tmpdir(), 'stillhouse-'));
afterAll(() => rm(root, { recursive: true, force: true }));
const cache = join(root, 'cache');
await writeSyntheticCache(
  cache,
  { vocabSize: 512, hiddenSize: 24, rows: 9, k: 6, temperatures: [1, 2, 4], layerCount: 4 },
  {
    labels: {
      topk: { k: 6, temperatures: [1, 2, 4] },
      hidden: { layers: ['final', 2, 'attention.2'], dtype: 'float32' },
      head: true,
    },
  },
);

const RUN = { cache, student: STUDENT, threads: 1, batchTokens: 24, lr: 1e-3 };
/** Layers, rows, labels and rates differ; what learnt first rests in the second. */
const STAGES = [
  {
    name: 'features',
    steps: 2,
    labels: 'topk',
    hiddenWeight: 1,
    hiddenLayers: ['1:2'],
    attentionWeight: 1,
    attentionLayers: ['1:2'],
    trainLayers: [0, 'embedding'],
  },
  {
    name: 'hot',
    steps: 3,
    labels: 'full',
    temperature: 4,
    alpha: 0.9,
    trainLayers: [1, 'norm'],
    tasks: ['code'],
    seed: 3,
  },
  { name: 'all', steps: 2, temperature: 2, schedule: 'linear', alphaEnd: 0, warmupSteps: 1, split: 'train' },
] as const;
let runs = 0;

function staged(
  given: Partial<TrainingSettings> = {},
  stages: unknown = STAGES,
): StagedSettings & { readonly out: string } {
  const out = join(root, `run-${++runs}`);
  const flags = { out, checkpointEvery: 100, ...given };
  const settings = resolveSettings(TRAINING_SETTINGS, { ...RUN, ...flags });
  return { ...settings, out, stages: resolveStages(stages, RUN, flags, 'recipe.json') };
}

const readFigures = async (out: string) =>
  (await readMetrics(out)).map(({ elapsedMs: _, dataWaitMs: __, ...rest }) => rest);
const readWeights = (out: string) => readFile(join(out, 'model.safetensors'));

const straight = staged();
let planned: readonly StageSummary[] = [];

test('stages are their runs one after the other, bit for bit, in one list of steps', async () => {
  await trainStudent(straight, { onPlan: ({ stages }) => (planned = stages!) });
  assert.deepEqual(
    planned.map(({ name, steps, labels }) => [name, steps, labels]),
    [
      ['features', 2, 'topk'],
      ['hot', 3, 'full'],
      ['all', 2, 'full'],
    ],
  );
  const metrics = await readFigures(straight.out);
  assert.deepEqual(
    metrics.map(({ step, stage }) => [step, stage]),
    [1, 2, 3, 4, 5, 6, 7].map((step) => [step, step <= 2 ? 'features' : step <= 5 ? 'hot' : 'all']),
  );
  const chained: StepMetrics[] = [];
  let student = STUDENT;
  for (const { settings } of straight.stages!) {
    const out = join(root, `run-${++runs}`);
    await trainStudent({ ...settings, out, student });
    chained.push(...((await readFigures(out)) as StepMetrics[]));
    student = out;
  }
  assert.deepEqual(await readWeights(straight.out), await readWeights(student));
  const figures = (lines: readonly Partial<StepMetrics>[]) =>
    lines.map(({ step: _, stage: __, tokensSeen: ___, ...rest }) => rest);
  assert.deepEqual(figures(metrics), figures(chained));
});

test('a run that is stopped before, at and after a switch goes on to the same end', async () => {
  const [weights, metrics] = [await readWeights(straight.out), await readFigures(straight.out)];
  for (const stopAfter of [1, 2, 3, 5, 6]) {
    const cut = staged();
    const { isFinished } = await trainStudent(cut, stopAt(stopAfter));
    assert.equal(isFinished, false);
    const { steps } = await trainStudent({ ...cut, resume: true });
    assert.equal(steps, 7);
    assert.deepEqual(await readFigures(cut.out), metrics, `stopped after ${stopAfter}`);
    assert.deepEqual(await readWeights(cut.out), weights, `stopped after ${stopAfter}`);
  }
});

test('a run that fails goes on from the end of the stage before, or from any checkpoint', async () => {
  class Failure extends Error {}
  const cut = staged({ keepCheckpoints: 5 });
  const failAt = (at: number) => ({
    onStep: ({ step }: { readonly step: number }) => {
      if (step === at) throw new Failure();
    },
  });
  await assert.rejects(trainStudent(cut, failAt(4)), Failure);
  assert.deepEqual(await readdir(join(cut.out, 'checkpoints')), ['step-00000002']);
  await assert.rejects(trainStudent({ ...cut, resume: true }, failAt(6)), Failure);
  assert.deepEqual(await readdir(join(cut.out, 'checkpoints')), ['step-00000002', 'step-00000005']);
  const state = JSON.parse(await readFile(join(cut.out, 'checkpoints', 'step-00000005', 'state.json'), 'utf8'));
  assert.equal(state.stage, 'hot');
  await trainStudent({ ...cut, resume: true, resumeStep: 2 });
  assert.deepEqual(await readWeights(cut.out), await readWeights(straight.out));
});

test('the recipe holds the stages, and a run goes on with no others', async () => {
  const recipe = JSON.parse(await readFile(join(straight.out, 'recipe.json'), 'utf8'));
  assert.equal(recipe.temperature, undefined, 'what stages have of their own is in them alone');
  assert.deepEqual([recipe.cache, recipe.threads], [cache, 1]);
  assert.deepEqual(
    recipe.stages.map(({ name, labels, steps }: Record<string, unknown>) => [name, labels, steps]),
    [
      ['features', 'topk', 2],
      ['hot', 'full', 3],
      ['all', 'full', 2],
    ],
  );
  const { stages, ...rest } = recipe;
  const again = { ...resolveSettings(TRAINING_SETTINGS, rest), stages: resolveStages(stages, rest, {}, 'recipe.json') };
  await trainStudent({ ...again, resume: true });
  const changed = (change: object) =>
    trainStudent({
      ...again,
      resume: true,
      stages: resolveStages(
        stages.map((one: object, i: number) => (i === 1 ? { ...one, ...change } : one)),
        rest,
        {},
        'r',
      ),
    });
  await assert.rejects(changed({ temperature: 2 }), {
    code: 'RECIPE_DIFFERS',
    message: /\(stage hot, temperature: have 4, asked 2\)/,
  });
  await assert.rejects(changed({ name: 'cold' }), {
    code: 'RECIPE_DIFFERS',
    message: /stages: have \["features","hot","all"\], asked/,
  });
  await assert.rejects(trainStudent({ ...again, resume: true, stages: undefined as never }), {
    code: 'RECIPE_DIFFERS',
  });
});

test('a mistake in the last stage is found before the first step of the first', async () => {
  const last = (change: object) => staged({}, [STAGES[0], { ...STAGES[2], ...change }]);
  const cases: readonly [string, object, RegExp][] = [
    [
      'TEMPERATURE_NOT_IN_GRID',
      { labels: 'topk', temperature: 3, schedule: 'constant', alphaEnd: undefined },
      /stage 2 \(all\), --temperature 3/,
    ],
    ['HIDDEN_NOT_IN_CACHE', { hiddenWeight: 1, hiddenLayers: ['1:3'] }, /stage 2 \(all\)/],
    ['NO_TRAINING_ROWS', { verifiedOnly: true }, /stage 2 \(all\).*no row is of split train, with a verified answer/],
    ['TASK_NOT_IN_CACHE', { tasks: ['math', 'maths'] }, /stage 2 \(all\).*got maths/],
    ['TRAIN_LAYERS_INVALID', { trainLayers: [7] }, /stage 2 \(all\)/],
  ];
  for (const [code, change, message] of cases) {
    const settings = last(change);
    await assert.rejects(trainStudent(settings), (error) => {
      assert.ok(isStillhouseError(error, code), String(error));
      assert.match(error.message, message);
      return true;
    });
    await assert.rejects(readdir(settings.out), `${code} left an output folder`);
  }
  const adapters = staged({ loraRank: 2 }, [STAGES[2], { ...STAGES[2], name: 'more', trainLayers: [0] }]);
  await assert.rejects(trainStudent(adapters), {
    code: 'SETTING_NOT_FOR_STAGE',
    message: /stage more, trainLayers.*expected all, got 0/,
  });
});

test('adapters go on from stage to stage', async () => {
  const stages = [
    { ...STAGES[2], name: 'one' },
    { ...STAGES[2], name: 'two' },
  ];
  const whole = staged({ loraRank: 2 }, stages);
  await trainStudent(whole);
  const cut = staged({ loraRank: 2 }, stages);
  await trainStudent(cut, stopAt(3));
  await trainStudent({ ...cut, resume: true });
  assert.deepEqual(await readWeights(cut.out), await readWeights(whole.out));
  const [first, , third] = await readFigures(whole.out);
  assert.notEqual(first!.ce, third!.ce, 'the second stage begins where the first ended');
});

test('what is no list of stages, and what holds for the run, is refused with its place', () => {
  const cases: readonly [string, unknown, RegExp][] = [
    ['STAGES_INVALID', [], /r\.json, key "stages": these are no stages/],
    ['STAGES_INVALID', { name: 'a' }, /these are no stages/],
    ['STAGES_INVALID', ['a'], /r\.json, stage 1: this is no stage/],
    ['STAGES_INVALID', [{ steps: 3 }], /the stage has no name/],
    ['STAGES_INVALID', [{ name: 'a' }, { name: 'a' }], /r\.json, stage 2: another stage has this name/],
    ['SETTING_NOT_FOR_STAGE', [{ name: 'a', out: 'x' }], /r\.json, stage 1 \(a\), key "out": .*for the run as a whole/],
    ['SETTING_UNKNOWN', [{ name: 'a', temprature: 2 }], /stage 1 \(a\), key "temprature"/],
    ['SETTING_INVALID', [{ name: 'a', alpha: 2 }], /stage 1 \(a\), key "alpha".*at most 1/],
  ];
  for (const [code, stages, message] of cases) {
    assert.throws(() => resolveStages(stages, {}, { alpha: 0.5 }, 'r.json'), { code, message });
  }
  const [one, two] = resolveStages(
    [{ name: 'a', alpha: 0.1, steps: 5 }, { name: 'b' }],
    { alpha: 0.2, lr: 1 },
    { steps: 1 },
    'r',
  );
  assert.deepEqual([one!.settings.alpha, one!.settings.lr, one!.settings.steps], [0.1, 1, 1]);
  assert.deepEqual([two!.settings.alpha, two!.settings.steps, two!.settings.temperature], [0.2, 1, 2]);
});
