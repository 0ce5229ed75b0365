import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openSafetensors, readModelConfig } from '@stillhouse/checkpoint';
import { isStillhouseError } from '@stillhouse/errors';
import type { FeatureMatch, LabelArrays, Objective } from '@stillhouse/objectives';
import { openEngine } from '@stillhouse/runtime';
import { resolveSettings } from '@stillhouse/settings';
import type { HiddenLayer } from '@stillhouse/teacher-cache';
import { expectClose, randomNormals } from '@stillhouse/testing';
import { afterAll, test } from 'vitest';
import { type StepMetrics, TRAINING_SETTINGS, type TrainingSettings, trainStudent } from '../index.ts';
import { reachedBy } from '../plan/feature-reach.ts';
import { isProjection } from '../plan/projections.ts';
import { writeSyntheticCache } from '../testing/synthetic-cache.ts';
import type { MicroBatch } from './micro-batch.ts';
import type { FloatData } from './parameters.ts';
import { createStudent, type Student, type StudentOptions } from './student.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

const STUDENT = new URL('../../../../test/golden/qwen2-tiny', import.meta.url).pathname;
const GOLDEN = new URL('../../../../test/golden/features/', import.meta.url).pathname;
const WIDTH = 24;
const targets = await openSafetensors(`${GOLDEN}targets.safetensors`);
const weights = await openSafetensors(`${STUDENT}/model.safetensors`);
const inputs = await openSafetensors(`${STUDENT}/inputs.safetensors`);
const config = await readModelConfig(STUDENT);

const PAIRS: readonly (readonly [HiddenLayer, HiddenLayer])[] = [
  [0, 3],
  [1, 5],
  [2, 5],
  ['final', 'final'],
  ['attention.1', 'attention.2'],
  ['attention.2', 'attention.4'],
];
const HIDDEN = 4;
const FEATURES = PAIRS.map(
  ([student, teacher]): FeatureMatch => ({
    ...{ student, teacher, loss: 'mse', normalisation: 'none', teacherHidden: WIDTH, hasProjection: true },
  }),
);

const OBJECTIVE: Objective = { labels: { kind: 'none' }, divergence: { kind: 'forward-kl' }, features: FEATURES };

async function readMicroBatch(): Promise<MicroBatch> {
  const [ids, attention, labels, mask] = await Promise.all(
    ['input_ids', 'attention_mask', 'labels', 'loss_mask'].map(async (name) =>
      Array.from((await inputs.readInt(name)) as unknown as ArrayLike<bigint>, Number),
    ),
  );
  const [rows, length] = inputs.tensors.get('input_ids')!.shape as [number, number];
  const places = Array.from({ length: rows * length }, (_, at) => at).filter((at) => mask![at] === 1);
  const features = new Map<HiddenLayer, { dtype: 'float64'; data: Float64Array; width: number }>();
  for (const [, teacher] of PAIRS) {
    const all = await targets.read(`teacher.${teacher}`, 'float64');
    const data = Float64Array.from(places.flatMap((at) => [...all.subarray(at * WIDTH, (at + 1) * WIDTH)]));
    features.set(teacher, { dtype: 'float64', data, width: WIDTH });
  }
  const arrays: LabelArrays = {
    count: places.length,
    rows: Int32Array.from(places, (at) => Math.floor(at / length)),
    positions: Int32Array.from(places, (at) => at % length),
    labels: BigInt64Array.from(places, (at) => BigInt(labels![at]!)),
    teacher: new Map(),
    features,
  };
  const sequences = Array.from({ length: rows }, (_, row) =>
    Int32Array.from(ids!.slice(row * length, (row + 1) * length).filter((_, t) => attention![row * length + t] === 1)),
  );
  return { sequences, labels: arrays };
}

const openStudent = (more: Partial<StudentOptions> = {}) =>
  createStudent(engine, {
    config,
    float: 'float64',
    read: (name) => (isProjection(name) ? targets : weights).read(name, 'float64') as Promise<FloatData>,
    objective: OBJECTIVE,
    scalars: { temperature: 1, alpha: 0.5, hiddenWeight: 0.5, attentionWeight: 0.25 },
    adamw: { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0, clip: 1 },
    vocabSize: config.vocabSize,
    chunkPositions: 128,
    ...more,
  });

const root = await mkdtemp(join(tmpdir(), 'stillhouse-'));
afterAll(() => rm(root, { recursive: true, force: true }));
const cache = join(root, 'cache');
await writeSyntheticCache(
  cache,
  { vocabSize: 512, hiddenSize: WIDTH, rows: 8, k: 6, temperatures: [1, 2], layerCount: 4 },
  {
    labels: {
      topk: { k: 6, temperatures: [1, 2] },
      hidden: { layers: ['final', 0, 2, 4, 'attention.1', 'attention.4'], dtype: 'int8' },
      head: true,
    },
  },
);
let runs = 0;
const settings = (given: Partial<TrainingSettings>) =>
  resolveSettings(TRAINING_SETTINGS, {
    ...{ student: STUDENT, cache, steps: 4, batchTokens: 30, lr: 1e-3, threads: 1, checkpointEvery: 2, labels: 'topk' },
    ...{ hiddenWeight: 0.3, out: join(root, `run-${++runs}`) },
    ...given,
  });
const readRun = async (out: string) => ({
  recipe: JSON.parse(await readFile(join(out, 'recipe.json'), 'utf8')) as TrainingSettings,
  metrics: (await readFile(join(out, 'metrics.jsonl'), 'utf8'))
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as StepMetrics),
});

test('distances at every layer and their gradients are those of PyTorch, whatever the chunk', async () => {
  const batch = await readMicroBatch();
  const golden = await openSafetensors(`${GOLDEN}matching.safetensors`);
  for (const more of [{}, { chunkPositions: 5, recompute: true }]) {
    const student = await openStudent(more);
    const { sums } = await student.computeGradients([batch], batch.labels.count);
    const read = async (name: string) => (await golden.read(name, 'float64'))[0]!;
    const wanted = await Promise.all(PAIRS.map(([a, b]) => read(`pair.${a}:${b}`)));
    expectClose(sums.features, wanted, { absolute: 1e-10, where: 'pairs' });
    expectClose([sums.ce], [await read('ce')], { absolute: 1e-10, where: 'ce' });
    const mean = (some: readonly number[]) => some.reduce((sum, one) => sum + one, 0) / some.length;
    const total = sums.ce + 0.5 * mean(wanted.slice(0, HIDDEN)) + 0.25 * mean(wanted.slice(HIDDEN));
    expectClose([sums.loss], [await read('total')], { absolute: 1e-10, where: 'loss' });
    expectClose([sums.loss], [total], { absolute: 1e-10, where: 'the sum of its terms' });
    const gradients = await openSafetensors(`${GOLDEN}gradients.safetensors`);
    for (const { name, gradient } of student.parameters.trained) {
      const expected = await gradients.read(name, 'float64');
      const size = Math.max(...expected.map(Math.abs));
      // They were computed in float64 and are stored as float32.
      expectClose((await engine.download(gradient)) as Float64Array, expected, { absolute: 1e-7 * size, where: name });
    }
  }
});

async function expectSlope(student: Student) {
  const batch = await readMicroBatch();
  const { trained: all } = student.parameters;
  const normal = randomNormals(11);
  const compute = async () => (await student.computeGradients([batch], batch.labels.count)).sums.loss;
  await compute();
  const start = await Promise.all(all.map(async ({ weight }) => (await engine.download(weight)) as Float64Array));
  const gradients = await Promise.all(
    all.map(async ({ gradient }) => (await engine.download(gradient)) as Float64Array),
  );
  const direction = start.map((values) => values.map(() => normal()));
  const slope = gradients.reduce(
    (sum, values, i) => sum + values.reduce((part, value, j) => part + value * direction[i]![j]!, 0),
    0,
  );
  const at = async (step: number) => {
    all.forEach(({ weight }, i) => {
      engine.write(
        weight,
        Float64Array.from(start[i]!, (value, j) => value + step * direction[i]![j]!),
      );
    });
    return compute();
  };
  const step = 1e-6;
  const numeric = ((await at(step)) - (await at(-step))) / (2 * step);
  assert.ok(Math.abs(slope - numeric) < 1e-7 * Math.abs(numeric), `${slope} against ${numeric}`);
}

test('the gradient of all weights and projections is the slope of the loss along a random direction', async () => {
  await expectSlope(await openStudent());
});

test('with features alone the loss is theirs, and nothing above them learns', async () => {
  const batch = await readMicroBatch();
  const whole = await openStudent();
  const { sums: wanted } = await whole.computeGradients([batch], batch.labels.count);
  const cases: readonly [features: readonly FeatureMatch[], learns: RegExp][] = [
    [FEATURES.filter(({ student }) => student === 1), /embed_tokens|layers\.0\./],
    [
      FEATURES.filter(({ student }) => student === 'attention.2'),
      /embed_tokens|layers\.0\.|layers\.1\.(self_attn|input_l)/,
    ],
    [
      FEATURES.filter(({ student }) => student === 'attention.1' || student === 0),
      /embed_tokens|layers\.0\.(self_attn|input_l)/,
    ],
    [FEATURES.filter(({ student }) => student === 'final'), /./],
  ];
  for (const [features, learns] of cases) {
    const objective = { ...OBJECTIVE, features, isFeaturesOnly: true };
    for (const recompute of [false, true]) {
      const student = await openStudent({ objective, trained: reachedBy(objective, config), recompute });
      const { sums } = await student.computeGradients([batch], batch.labels.count);
      assert.deepEqual([sums.kl, sums.ce], [0, 0]);
      expectClose(
        sums.features,
        features.map((match) => wanted.features[FEATURES.indexOf(match)]!),
        { absolute: 1e-12, where: 'distances' },
      );
      for (const { name, gradient } of student.parameters.tensors) {
        if (isProjection(name)) continue;
        assert.equal(gradient !== undefined, learns.test(name), name);
        if (gradient !== undefined)
          assert.ok(
            ((await engine.download(gradient)) as Float64Array).some((value) => value !== 0),
            name,
          );
      }
      await expectSlope(student);
    }
  }
});

test('what is frozen changes no gradient of what learns', async () => {
  const batch = await readMicroBatch();
  const readGradients = async (more: Partial<StudentOptions>) => {
    const student = await openStudent(more);
    const { sums } = await student.computeGradients([batch], batch.labels.count);
    const gradients = new Map<string, Float64Array>();
    for (const { name, gradient } of student.parameters.trained)
      gradients.set(name, (await engine.download(gradient)) as Float64Array);
    return { sums, gradients };
  };
  const whole = await readGradients({});
  const parts = ['model.layers.1.', 'model.layers.0.', 'model.norm.', 'model.embed_tokens.', 'none'];
  for (const part of parts) {
    const { sums, gradients } = await readGradients({ trained: (name) => name.startsWith(part) });
    assert.deepEqual(sums, whole.sums, part);
    assert.equal([...gradients.keys()].filter(isProjection).length, PAIRS.length);
    for (const [name, gradient] of gradients)
      expectClose(gradient, whole.gradients.get(name)!, {
        absolute: 1e-12,
        where: `${name} where only ${part} learns`,
      });
  }
});

test('a run names its pairs, keeps a projection for each, and goes on bit for bit', async () => {
  const uniform: Partial<TrainingSettings> = {
    hiddenLayers: ['uniform'],
    hiddenNormalise: 'layer',
    attentionLayers: ['uniform'],
    attentionWeight: 0.1,
  };
  const straight = settings(uniform);
  await trainStudent(straight);
  const { recipe, metrics } = await readRun(straight.out!);
  assert.deepEqual(recipe.hiddenLayers, ['0:0', '1:2', '2:4', 'final:final']);
  assert.deepEqual(recipe.attentionLayers, ['1:1', '2:4']);
  for (const { loss, kl, ce, hidden, attention, pairs } of metrics) {
    assert.deepEqual(Object.keys(pairs!), [
      ...recipe.hiddenLayers!,
      'attention.1:attention.1',
      'attention.2:attention.4',
    ]);
    const distances = Object.values(pairs!);
    const mean = (some: readonly number[]) => some.reduce((sum, one) => sum + one, 0) / some.length;
    assert.ok(Math.abs(hidden - mean(distances.slice(0, 4))) < 1e-12 && hidden > 0);
    assert.ok(Math.abs(attention! - mean(distances.slice(4))) < 1e-12 && attention! > 0);
    assert.ok(Math.abs(loss - (0.7 * 4 * kl + 0.3 * ce + 0.3 * hidden + 0.1 * attention!)) < 1e-5 * loss);
  }
  const saved = await openSafetensors(join(straight.out!, 'projection.safetensors'));
  assert.deepEqual([...saved.tensors.keys()].sort(), [
    'projection.0:0.weight',
    'projection.1:2.weight',
    'projection.2:4.weight',
    'projection.attention.1:attention.1.weight',
    'projection.attention.2:attention.4.weight',
    'projection.weight',
  ]);
  const cut = settings({ ...uniform, accumulate: 1 });
  const stop = new AbortController();
  await trainStudent(cut, { stopSignal: stop.signal, onStep: ({ step }) => step === 3 && stop.abort() });
  await trainStudent({ ...cut, resume: true });
  for (const file of ['model.safetensors', 'projection.safetensors'])
    assert.deepEqual(await readFile(join(cut.out!, file)), await readFile(join(straight.out!, file)), file);
  await assert.rejects(trainStudent({ ...cut, hiddenLayers: ['1:2'], resume: true }), (error) =>
    isStillhouseError(error, 'RECIPE_DIFFERS'),
  );
  const split = settings({ ...uniform, accumulate: 3, chunkPositions: 2 });
  await trainStudent(split);
  const other = await readRun(split.out!);
  metrics.forEach((one, i) => {
    for (const key of ['loss', 'hidden', 'gradNorm'] as const)
      assert.ok(Math.abs(one[key] - other.metrics[i]![key]) < 2e-5 * one[key], `step ${i + 1} ${key}`);
  });
});

test('the final states alone are the plain case: no pairs in metrics, no layers that were not named in the recipe', async () => {
  const plain = settings({});
  const named = settings({ hiddenLayers: ['final:final'] });
  await trainStudent(plain);
  await trainStudent(named);
  const [a, b] = [await readRun(plain.out!), await readRun(named.out!)];
  assert.ok(a.metrics.every(({ pairs, hidden }) => pairs === undefined && hidden > 0));
  assert.deepEqual([a.recipe.hiddenLayers, b.recipe.hiddenLayers], [undefined, ['final:final']]);
  assert.deepEqual(
    await readFile(join(plain.out!, 'model.safetensors')),
    await readFile(join(named.out!, 'model.safetensors')),
  );
});

test('a run on features alone leaves what is above them as it was', async () => {
  const run = settings({ featuresOnly: true, labels: undefined, hiddenLayers: ['1:2'], weightDecay: 0.5 });
  await trainStudent(run);
  const { metrics, recipe } = await readRun(run.out!);
  assert.ok(metrics.every(({ loss, kl, ce, hidden }) => kl === 0 && ce === 0 && Math.abs(loss - 0.3 * hidden) < 1e-6));
  assert.equal(recipe.labels, 'none');
  const saved = await openSafetensors(join(run.out!, 'model.safetensors'));
  for (const name of weights.tensors.keys()) {
    const isSame = Buffer.from(await saved.readRaw(name)).equals(Buffer.from(await weights.readRaw(name)));
    assert.equal(isSame, /layers\.1\.|model\.norm/.test(name), name);
  }
});

test('what nothing reads is refused', async () => {
  const cases: readonly [string, Partial<TrainingSettings>, RegExp][] = [
    ['SETTING_UNUSED', { featuresOnly: true }, /--labels topk: with --features-only the output distribution/],
    ['SETTING_UNUSED', { featuresOnly: true, labels: undefined, selectTokens: 0.5 }, /--select-tokens 0.5/],
    [
      'SETTING_MISSING',
      { featuresOnly: true, labels: undefined, hiddenWeight: 0 },
      /--features-only: no states are matched/,
    ],
    [
      'SETTING_CONFLICT',
      { featuresOnly: true, labels: undefined, hiddenLayers: ['1:2'], trainLayers: [1] },
      /--train-layers: what is to learn lies above/,
    ],
    ['SETTING_UNUSED', { hiddenWeight: 0, hiddenLayers: ['1:2'] }, /--hidden-layers.*--hidden-weight above 0/],
    ['SETTING_UNUSED', { hiddenWeight: 0, hiddenNormalise: 'rms' }, /--hidden-normalise.*no states are matched/],
    ['SETTING_UNUSED', { attentionLayers: ['1:1'] }, /--attention-layers.*--attention-weight above 0/],
    [
      'HIDDEN_NOT_IN_CACHE',
      { attentionWeight: 1, attentionLayers: ['1:3'] },
      /attention outputs of layer 3.*1, 4, got 3/,
    ],
    ['SETTING_UNUSED', { hiddenLoss: 'cosine', hiddenNormalise: 'rms' }, /cosine does not depend/],
    ['HIDDEN_NOT_IN_CACHE', { hiddenLayers: ['1:3'] }, /a layer of final, 0, 2, 4, got 3/],
    ['LAYER_OUT_OF_RANGE', { hiddenLayers: ['3:2'] }, /final or 0 to 2, got 3/],
    ['PROJECTION_NEEDED', { hiddenLayers: ['1:2'], projection: 'none' }, /width 64, got 24/],
  ];
  for (const [code, given, message] of cases) {
    await assert.rejects(trainStudent(settings(given)), (error) => {
      assert.ok(isStillhouseError(error, code), String(error));
      assert.match(error.message, message);
      return true;
    });
  }
});
