import assert from 'node:assert/strict';
import { describeParameters, readModelConfig } from '@stillhouse/checkpoint';
import { packSequences } from '@stillhouse/model-runner';
import { openEngine } from '@stillhouse/runtime';
import { randomNormals } from '@stillhouse/testing';
import { afterAll, test } from 'vitest';
import { createStudent, type MicroBatch } from '../index.ts';
import { type BatchLayout, forecastMemory, gatherLayouts, type MemoryQuestion } from '../plan/memory-forecast.ts';
import { makeTrainingPlan } from '../plan/training-plan.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

const config = {
  ...(await readModelConfig(new URL('../../../../test/golden/qwen2-tiny', import.meta.url).pathname)),
  ...{ hiddenSize: 128, intermediateSize: 512, headCount: 8, kvHeadCount: 2, headDim: 16, layerCount: 2 },
};
const objective = { labels: { kind: 'none' }, divergence: { kind: 'forward-kl' } } as const;

/** One row with all positions as targets, in blocks of at most `blockLength` columns. */
function makeRow(length: number, blockLength?: number): MicroBatch {
  const ids = Int32Array.from({ length }, (_, i) => (i * 7) % config.vocabSize);
  const positions = Int32Array.from({ length: length - 1 }, (_, i) => i);
  return {
    sequences: [ids],
    batch: packSequences([ids], undefined, blockLength),
    labels: {
      count: positions.length,
      rows: new Int32Array(positions.length),
      positions,
      labels: BigInt64Array.from(positions, (i) => BigInt(ids[i + 1]!)),
      teacher: new Map(),
    },
  };
}

async function openStudent(recompute: boolean) {
  const normal = randomNormals(1);
  const shapes = new Map(describeParameters(config).map(({ name, shape }) => [name, shape]));
  return createStudent(engine, {
    config,
    float: 'float32',
    read: async (name) =>
      Float32Array.from({ length: shapes.get(name)!.reduce((product, dim) => product * dim, 1) }, () => normal() / 50),
    objective,
    scalars: { temperature: 1, alpha: 1, hiddenWeight: 0 },
    adamw: { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1, clip: 1 },
    vocabSize: config.vocabSize,
    chunkPositions: 128,
    recompute,
  });
}

for (const { recompute, length, queryBlocks } of [
  { recompute: false, length: 2112, queryBlocks: 16 },
  { recompute: true, length: 3072, queryBlocks: 64 },
]) {
  const how = recompute ? 'computed again' : 'kept';
  test(`a row in ${queryBlocks} blocks, activations ${how}, takes what the forecast says`, async () => {
    const student = await openStudent(recompute);
    // What compiling takes is not what is asked for: a short row in as many blocks first.
    const short = makeRow(2 * queryBlocks, 2);
    const long = makeRow(length, length / queryBlocks);
    assert.deepEqual(
      [short, long].map(({ batch }) => batch!.queryBlocks),
      [queryBlocks, queryBlocks],
    );
    await student.computeGradients([short], short.labels.count);
    const before = await engine.memory();
    await student.computeGradients([long], long.labels.count);
    const measured = (await engine.memory()).peakRssBytes - before.residentBytes;
    const question: MemoryQuestion = {
      plan: makeTrainingPlan({ config, objective, vocabSize: config.vocabSize, recompute, chunkPositions: 128 }),
      batch: { rows: 1, length, stepTokens: length },
      layouts: [{ rows: 1, length, queryBlocks }],
      keptCacheBytes: 0,
      prefetchSteps: 0,
      evaluates: false,
    };
    const items = new Map(forecastMemory(question).items.map(({ what, sizeBytes }) => [what, sizeBytes]));
    const expected = [
      'activations that are kept',
      'working memory of the layers',
      'residual streams and labels of a micro-batch',
    ].reduce((sum, what) => sum + (items.get(what) ?? 0), 0);
    const share = measured / expected;
    assert.ok(share > 0.85 && share < 1.15, `${measured} bytes, ${expected} forecast`);
  });
}

test('of batches in as many blocks the longest rows count, with the tokens of the largest', () => {
  const batches: BatchLayout[] = [
    { rows: 8, length: 100, queryBlocks: 1 },
    { rows: 1, length: 400, queryBlocks: 1 },
    { rows: 1, length: 700, queryBlocks: 4 },
    { rows: 2, length: 600, queryBlocks: 4 },
  ];
  assert.deepEqual(gatherLayouts(batches), [
    { rows: 2, length: 400, queryBlocks: 1 },
    { rows: 2, length: 700, queryBlocks: 4 },
  ]);
});
