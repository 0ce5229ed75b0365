import assert from 'node:assert/strict';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { countParameters, readModelConfig } from '@stillhouse/checkpoint';
import { isStillhouseError } from '@stillhouse/errors';
import { openEngine } from '@stillhouse/runtime';
import { resolveSettings } from '@stillhouse/settings';
import { makeTemporaryFolder } from '@stillhouse/testing';
import { test } from 'vitest';
import { planTraining, TRAINING_SETTINGS, type TrainingSettings, trainStudent } from '../index.ts';
import { measureActivations } from '../step/activation-store.ts';
import { openGoldenStudent, readStep } from '../testing/golden-student.ts';
import { writeSyntheticCache } from '../testing/synthetic-cache.ts';
import { planBackward } from './backward-plan.ts';
import { resolveLearning } from './learning.ts';
import { forecastMemory, type MemoryQuestion } from './memory-forecast.ts';
import { makeTrainingPlan, type PlanOptions } from './training-plan.ts';

const STUDENT = new URL('../../../../test/golden/qwen2-tiny', import.meta.url).pathname;
const TEACHER = { vocabSize: 512, hiddenSize: 24, rows: 10, k: 12, temperatures: [1, 2] };
const config = await readModelConfig(STUDENT);

const settings = (given: Partial<TrainingSettings>): TrainingSettings =>
  resolveSettings(TRAINING_SETTINGS, { student: STUDENT, batchTokens: 60, threads: 1, ...given });

test('a plan says what a run does and takes, checks what the run checks, and writes nothing', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const [cache, out] = [join(folder, 'cache'), join(folder, 'out')];
  await writeSyntheticCache(cache, TEACHER);
  const plan = await planTraining(settings({ cache, out, labels: 'full', steps: 4 }));
  assert.deepEqual([plan.rows, plan.steps, plan.labels, plan.fits], [10, 4, 'full', true]);
  assert.deepEqual(plan.advice, []);
  const { items, peakBytes } = plan.memory;
  assert.equal(
    items.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
    peakBytes,
  );
  const find = (what: string) => items.find((item) => item.what === what)?.sizeBytes;
  assert.equal(find('weights'), 4 * countParameters(config));
  assert.equal(find("the teacher's output matrix"), 4 * 512 * 24);
  const further = await planTraining(settings({ cache, out, labels: 'full', steps: 4, prefetchSteps: 6 }));
  const ahead = 'labels of the steps that are read ahead';
  assert.equal(further.memory.items.find(({ what }) => what === ahead)?.sizeBytes, 2 * find(ahead)!, '8 steps for 4');
  assert.deepEqual(await readdir(folder), ['cache']);
  for (const [code, given] of [
    ['LABELS_NOT_IN_CACHE', { labels: 'sampled' }],
    ['RUN_ABSENT', { resume: true }],
    ['TRAIN_LAYERS_INVALID', { trainLayers: [9] }],
  ] as const) {
    await assert.rejects(planTraining(settings({ cache, out, ...given })), (error) => isStillhouseError(error, code));
  }
  await trainStudent(settings({ cache, out, steps: 1 }));
  await assert.rejects(planTraining(settings({ cache, out })), (error) => isStillhouseError(error, 'RUN_EXISTS'));
});

test('where a run does not fit, changes are named in order with what each saves, until it does', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const cache = join(folder, 'cache');
  await writeSyntheticCache(cache, TEACHER);
  const given = settings({ cache, out: join(folder, 'out'), labels: 'full', recompute: 'never', batchTokens: 4000 });
  const { memory } = await planTraining(given);
  const limit = 0.97 * memory.peakBytes;
  const plan = await planTraining(given, limit);
  assert.equal(plan.fits, false);
  assert.equal(plan.advice[0]!.flags, '--recompute always');
  let before = memory.peakBytes;
  for (const [i, { savedBytes, peakBytes }] of plan.advice.entries()) {
    assert.ok(savedBytes > 0);
    assert.equal(before - savedBytes, peakBytes);
    assert.equal(peakBytes <= limit, i === plan.advice.length - 1, 'no more is changed than is needed');
    before = peakBytes;
  }
  // The changes are what they say.
  const changed = Object.assign({}, given, ...plan.advice.map((advice) => advice.settings)) as TrainingSettings;
  assert.equal((await planTraining(changed, limit)).memory.peakBytes, before);
  const hopeless = await planTraining(given, 1);
  assert.ok(hopeless.advice.length > 0 && hopeless.advice.every(({ peakBytes }) => peakBytes > 1));
});

test('of stages the one that takes most is what the plan is of', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const cache = join(folder, 'cache');
  await writeSyntheticCache(cache, TEACHER);
  const given = settings({ cache, out: join(folder, 'out'), labels: 'topk', steps: 2, recompute: 'always' });
  const stages = [
    { name: 'upper', settings: { ...given, trainLayers: ['last-1'] } },
    { name: 'whole', settings: given },
  ];
  const plan = await planTraining({ ...given, stages });
  assert.deepEqual([plan.stage, plan.steps], ['whole', 4]);
  assert.equal(plan.memory.peakBytes, (await planTraining(given)).memory.peakBytes);
});

test('what a student holds on the device is what the forecast counts', async () => {
  const engine = await openEngine({ threads: 1 });
  try {
    for (const [trainLayers, optimiserState] of [
      [['all'], 'float32'],
      [['last-1'], 'int8'],
      [['all'], 'bfloat16'],
    ] as const) {
      const learning = resolveLearning(settings({ trainLayers }), config);
      const before = (await engine.memory()).allocatedBytes;
      const adamw = { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1, clip: 1, optimiserState };
      const { trained } = learning;
      const student = await openGoldenStudent(engine, 'tail', 'float32', { trained, adamw });
      const { microBatches, targets } = await readStep(0, 'tail', 'float32');
      await student.computeGradients(microBatches, targets);
      const held = (await engine.memory()).allocatedBytes - before;
      const { rows, length } = { rows: 3, length: 16 };
      const question: MemoryQuestion = {
        plan: makeTrainingPlan({
          config,
          objective: {
            labels: { kind: 'topk', k: 16, tail: 'tail', isWhole: false },
            divergence: { kind: 'forward-kl' },
          },
          vocabSize: config.vocabSize,
          ...learning,
          optimiserState,
          chunkPositions: 128,
        }),
        batch: { rows, length, stepTokens: 48 },
        layouts: [{ rows, length, queryBlocks: 1 }],
        keptCacheBytes: 0,
        prefetchSteps: 2,
        evaluates: false,
      };
      const counted = forecastMemory(question).items.filter(({ what }) =>
        ['weights', 'gradients', "AdamW's moments", 'activations that are kept'].includes(what),
      );
      const bytes = counted.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
      // The golden student has a projection [64, 64] besides, which learns; packing may save rows of activations.
      const slack = 16 * 64 * 64 + measureActivations(config, planBackward(config, trained), rows, length) / 3;
      assert.ok(Math.abs(held - bytes) <= slack, `${trainLayers} ${optimiserState}: ${held} held, ${bytes} counted`);
    }
  } finally {
    await engine.close();
  }
});

test('a forecast falls with each rung of the ladder', () => {
  type Changes = Partial<PlanOptions & Pick<MemoryQuestion, 'batch' | 'evaluates'>>;
  const ask = ({ batch: given, evaluates = false, ...changes }: Changes, change: Partial<TrainingSettings> = {}) => {
    const batch = { rows: 16, length: 128, stepTokens: 2048, ...given };
    return forecastMemory({
      plan: makeTrainingPlan({
        config,
        objective: { labels: { kind: 'none' }, divergence: { kind: 'forward-kl' } },
        vocabSize: config.vocabSize,
        ...resolveLearning(settings(change), config),
        chunkPositions: 512,
        ...changes,
      }),
      keptCacheBytes: 0,
      prefetchSteps: 2,
      evaluates,
      batch,
      layouts: [{ ...batch, queryBlocks: 1 }],
    }).peakBytes;
  };
  const whole = ask({});
  assert.ok(ask({ recompute: true }) < whole);
  assert.ok(ask({ optimiserState: 'int8' }) < ask({ optimiserState: 'bfloat16' }));
  assert.ok(ask({ optimiserState: 'bfloat16' }) < whole);
  assert.ok(ask({ chunkPositions: 64 }) < whole);
  assert.ok(ask({}, { trainLayers: [1] }) < whole);
  // In a student as small as this one adapters take more activations than they save state.
  const larger = { config: { ...config, hiddenSize: 1024, intermediateSize: 4096, headDim: 256 } };
  assert.ok(ask(larger, { loraRank: 2 }) < ask(larger));
  assert.ok(ask({ batch: { rows: 4, length: 128, stepTokens: 2048 } }) < whole);
  assert.ok(ask({ evaluates: true }) >= whole);
});
