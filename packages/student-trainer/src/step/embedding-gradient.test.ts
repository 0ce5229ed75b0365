import assert from 'node:assert/strict';
import { readModelConfig } from '@stillhouse/checkpoint';
import { embeddingGradientGraph } from '@stillhouse/decoder';
import { type DeviceTensor, openEngine } from '@stillhouse/runtime';
import { afterAll, test } from 'vitest';
import { embeddingGradientCalls } from './embedding-gradient.ts';

const engine = await openEngine({ threads: 2 });
afterAll(() => engine.close());

test('every one of many tokens with the same id counts in the embedding gradient, whatever the threads', async () => {
  const tiny = await readModelConfig(new URL('../../../../test/golden/qwen2-tiny', import.meta.url).pathname);
  const [vocabSize, hiddenSize] = [16, 256];
  const config = { ...tiny, vocabSize, hiddenSize };
  const program = await engine.compile(embeddingGradientGraph(config, 'float32'));
  // Enough that ONNX Runtime shares the rows out, and eight ids only, so that threads meet.
  const tokens = 1 << 14;
  const ids = BigInt64Array.from({ length: tokens }, (_, n) => BigInt(n % 8));
  const dx = engine.allocate('float32', [tokens, hiddenSize]);
  engine.fill(dx, 1);
  const table = engine.allocate('float32', [vocabSize, hiddenSize]);
  for (let round = 1; round <= 20; round++) {
    engine.fill(table, 0);
    const held: DeviceTensor[] = [];
    const hold = (tensor: DeviceTensor) => {
      held.push(tensor);
      return tensor;
    };
    await engine.run(embeddingGradientCalls(engine, { program, ids, dx, table, hold }));
    const sums = (await engine.download(table)) as Float32Array;
    const wrong = sums.filter((sum, i) => sum !== (i < 8 * hiddenSize ? tokens / 8 : 0)).length;
    assert.equal(wrong, 0, `round ${round}`);
    for (const tensor of held) engine.free(tensor);
  }
});
