import assert from 'node:assert/strict';
import { fileURLToPath } from 'node:url';
import { isStillhouseError } from '@stillhouse/errors';
import { test } from 'vitest';
import {
  createModelWeights,
  describeParameters,
  EMBEDDING_NAME,
  FINAL_NORM_NAME,
  layerTensorName,
  locateTensor,
  openModelWeights,
  openSafetensors,
  readModelConfig,
  type TensorSource,
} from './index.ts';

const GOLDEN = fileURLToPath(new URL('../../../test/golden/', import.meta.url));

test('every tensor of a model stands at its place once, and a tied output matrix is the embedding', async (t) => {
  for (const [name, isTied] of [
    ['qwen2-tiny', true],
    ['qwen2-tiny-untied', false],
  ] as const) {
    const weights = await openModelWeights(`${GOLDEN}${name}`);
    t.onTestFinished(weights.close);
    const { config, tensors, embedding, layers, norm, head } = weights;
    assert.equal(head === embedding, isTied);
    const placed = [embedding, ...layers.flatMap((layer) => Object.values(layer)), norm, ...(isTied ? [] : [head])];
    assert.deepEqual(placed, [...tensors.values()], 'in checkpoint order');
    assert.deepEqual(
      placed.map(({ name, shape }) => ({ name, shape })),
      describeParameters(config),
    );
  }
});

test('a name says where its tensor belongs', () => {
  const local = 'mlp.up_proj.lora_A.weight';
  assert.deepEqual(locateTensor(layerTensorName(12, local)), { part: 'layer', layer: 12, name: local });
  assert.deepEqual(locateTensor(EMBEDDING_NAME), { part: 'embedding' });
  assert.deepEqual(locateTensor(FINAL_NORM_NAME), { part: 'norm' });
  assert.deepEqual(locateTensor('lm_head.weight'), { part: 'head' });
  for (const name of ['projection.1', 'model.layers.x.y', 'model.norm']) assert.equal(locateTensor(name), undefined);
});

test('rows of the embedding are those of the whole', async (t) => {
  const weights = await openModelWeights(`${GOLDEN}qwen2-tiny`);
  t.onTestFinished(weights.close);
  for (const float of ['float32', 'float64'] as const) {
    const { hiddenSize: width, vocabSize } = weights.config;
    const whole = await weights.embedding.read(float);
    const ids = [0, 7, 8, vocabSize - 1];
    const rows = await weights.readEmbeddingRows(ids, float);
    assert.deepEqual(
      Array.from(rows),
      ids.flatMap((id) => Array.from(whole.subarray(id * width, (id + 1) * width))),
    );
    assert.equal((await weights.readEmbeddingRows([], float)).length, 0);
  }
});

test('what is not finite is refused by the first read or by one check of all, unless it is known to be finite', async (t) => {
  const config = await readModelConfig(`${GOLDEN}qwen2-tiny`);
  const source = await openSafetensors(`${GOLDEN}qwen2-tiny/model.safetensors`);
  t.onTestFinished(source.close);
  let reads = 0;
  const broken: TensorSource = {
    ...source,
    mayHoldNonFinite: async (name) => name === FINAL_NORM_NAME,
    read: async (name, float) => {
      reads++;
      const values = await source.read(name, float);
      if (name === FINAL_NORM_NAME) values[3] = Number.NaN;
      return values;
    },
  };
  const refused = (error: unknown) =>
    isStillhouseError(error, 'WEIGHT_NOT_FINITE') && /model\.safetensors.*model\.norm\.weight.*3/s.test(error.message);
  const weights = createModelWeights(broken, config);
  for (const float of ['float32', 'float64'] as const) await assert.rejects(weights.norm.read(float), refused);
  reads = 0;
  await assert.rejects(weights.checkFinite(), refused);
  assert.equal(reads, 1, 'only what is suspect is read as numbers');
  weights.assumeFinite();
  await weights.checkFinite();
  assert.ok(Number.isNaN((await weights.norm.read('float32'))[3]));
});
