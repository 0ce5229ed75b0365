import assert from 'node:assert/strict';
import { openModelWeights, readModelConfig } from '@stillhouse/checkpoint';
import type { Objective } from '@stillhouse/objectives';
import { type Engine, openEngine } from '@stillhouse/runtime';
import { test } from 'vitest';
import { makeTrainingPlan } from '../plan/training-plan.ts';
import type { MicroBatch } from '../step/micro-batch.ts';
import { createParameterStore, type FloatData, type ParameterStore } from '../step/parameters.ts';
import { viewAsDecoder } from '../step/student-decoder.ts';
import { locateDivergence } from './divergence-site.ts';

const STUDENT = new URL('../../../../test/golden/qwen2-tiny', import.meta.url).pathname;
const BATCHES = [
  [
    [1, 2, 3, 4],
    [5, 6],
  ],
  [[7, 8, 9]],
].map((sequences) => ({ sequences: sequences.map((ids) => Int32Array.from(ids)) }) as unknown as MicroBatch);
const ROWS = ['a', 'b', 'c'];

async function breakAndLocate(
  change: (parameters: ParameterStore, engine: Engine) => Promise<void>,
  isLossFinite = false,
) {
  const config = await readModelConfig(STUDENT);
  const source = await openModelWeights(STUDENT, config);
  const engine = await openEngine({ device: 'cpu', threads: 1 });
  try {
    const objective: Objective = { labels: { kind: 'none' }, divergence: { kind: 'forward-kl' } };
    const plan = makeTrainingPlan({ config, objective, vocabSize: config.vocabSize, chunkPositions: 128 });
    const read = async (name: string) => source.tensors.get(name)!.read('float32');
    const parameters = await createParameterStore(engine, plan, { float: 'float32', read });
    await change(parameters, engine);
    const model = viewAsDecoder(config, 'float32', parameters);
    return await locateDivergence(engine, model, parameters, { microBatches: BATCHES, rowIds: ROWS, isLossFinite });
  } finally {
    await engine.close();
    await source.close();
  }
}

const setOne = async (engine: Engine, tensor: ParameterStore['embedding']['weight'], at: number, value: number) => {
  const data = (await engine.download(tensor)) as FloatData;
  data[at] = value;
  engine.write(tensor, data);
};

test('a broken row of the embedding is blamed on the rows that hold its id', async () => {
  const width = (await readModelConfig(STUDENT)).hiddenSize;
  const site = await breakAndLocate(({ embedding }, engine) => setOne(engine, embedding.weight, 8 * width, Number.NaN));
  assert.match(site.place, /^the embedding; the weights model\.embed_tokens\.weight are not finite/);
  assert.deepEqual(site.rowIds, ['c']);
});

test('values that overflow in a layer name that layer', async () => {
  const site = await breakAndLocate(async (parameters, engine) => {
    const { weight } = parameters.get('model.layers.1.mlp.down_proj.weight');
    const data = (await engine.download(weight)) as FloatData;
    engine.write(
      weight,
      data.map(() => 3e38),
    );
  });
  assert.equal(site.place, 'layer 1');
  assert.deepEqual(site.rowIds, ROWS);
});

test('with a finite forward pass it is the loss, or the first gradient on the way back', async () => {
  const nothing = async () => {};
  assert.match((await breakAndLocate(nothing)).place, /^the loss, after all 2 layers$/);
  const site = await breakAndLocate(async (parameters, engine) => {
    for (const layer of [0, 1]) {
      const { gradient } = parameters.get(`model.layers.${layer}.self_attn.q_proj.weight`);
      await setOne(engine, gradient!, 3, Number.POSITIVE_INFINITY);
    }
  }, true);
  assert.deepEqual(site, { place: 'the gradient of model.layers.1.self_attn.q_proj.weight', rowIds: ROWS });
  assert.equal((await breakAndLocate(nothing, true)).place, 'the norm of the gradients together');
});
