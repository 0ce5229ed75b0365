import assert from 'node:assert/strict';
import { readModelConfig } from '@stillhouse/checkpoint';
import { openEngine } from '@stillhouse/runtime';
import { afterAll, test } from 'vitest';
import { makeTrainingPlan } from '../plan/training-plan.ts';
import { compileStepPrograms } from './step-programs.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

test('the plain program of a layer is compiled only where a layer goes forwards by it', async () => {
  const config = await readModelConfig(new URL('../../../../test/golden/qwen2-tiny', import.meta.url).pathname);
  for (const [recompute, count] of [
    [false, 0],
    [true, 1],
  ] as const) {
    const { forward, layers } = await compileStepPrograms(
      engine,
      makeTrainingPlan({
        config,
        objective: { labels: { kind: 'none' }, divergence: { kind: 'forward-kl' } },
        vocabSize: config.vocabSize,
        chunkPositions: 128,
        recompute,
      }),
      'float32',
    );
    assert.deepEqual([forward.block.made.length, layers.made.length], [0, 0]);
    await layers.take(4);
    assert.deepEqual([forward.block.made.length, layers.made.length], [count, 1]);
  }
});
