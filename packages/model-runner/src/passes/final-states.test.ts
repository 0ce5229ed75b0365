import assert from 'node:assert/strict';
import { type ModelWeights, openModelWeights, type WeightTensor } from '@stillhouse/checkpoint';
import { openEngine } from '@stillhouse/runtime';
import { afterAll, test } from 'vitest';
import { computeFinalStates } from './final-states.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

const MODEL = new URL('../../../../test/golden/llama-tiny', import.meta.url).pathname;
const rows = [{ inputIds: Int32Array.of(1, 5, 9), positions: Int32Array.of(0, 2) }];

/** The model, but one of its tensors cannot be read. */
function breakTensor(model: ModelWeights, broken: WeightTensor): ModelWeights {
  const replace = (tensor: WeightTensor): WeightTensor =>
    tensor.name === broken.name ? { ...tensor, read: () => Promise.reject(new Error('unreadable')) } : tensor;
  const layers = model.layers.map((layer) =>
    Object.fromEntries(Object.entries(layer).map(([place, tensor]) => [place, replace(tensor)])),
  );
  return { ...model, layers, norm: replace(model.norm) };
}

test('a tensor that cannot be read leaves nothing on the device', async () => {
  const model = await openModelWeights(MODEL);
  const isRead = ({ name }: WeightTensor) => name !== model.embedding.name && name !== model.head.name;
  for (const tensor of [...model.tensors.values()].filter(isRead)) {
    await assert.rejects(computeFinalStates(engine, breakTensor(model, tensor), rows, 'float32'), /unreadable/);
    assert.equal((await engine.memory()).allocatedBytes, 0, tensor.name);
  }
  await model.close();
});
