import assert from 'node:assert/strict';
import { join } from 'node:path';
import { openEngine } from '@stillhouse/runtime';
import { test } from 'vitest';
import { createGenerator, loadDecoder } from '../index.ts';

/** What transformers 5.23 generates from SmolLM2-135M in float32, greedily. */
const CASES = [
  {
    // 'The capital of France is' -> ' Paris.\n\nThe answer is: 2018-01-22 12:1'
    prompt: [504, 3575, 282, 4649, 314],
    ids: [7042, 30, 198, 198, 504, 2988, 314, 42, 216, 34, 32, 33, 40, 29, 32, 33, 29, 34, 34, 216, 33, 34, 42, 33],
  },
  {
    // 'Once upon a time, a small robot' -> ' named "Echo" had been tasked with a mission to help a group of humans ...'
    prompt: [6403, 1980, 253, 655, 28, 253, 1165, 8085],
    ids: [
      3365, 476, 53, 7463, 18, 761, 719, 24724, 351, 253, 4527, 288, 724, 253, 1528, 282, 2973, 617, 761, 719, 3900,
      411, 253, 11965,
    ],
  },
];

test('SmolLM2-135M says what transformers says, one prompt at a time and both together', async (t) => {
  const models = process.env.STILLHOUSE_MODELS;
  if (models === undefined) return t.skip('set STILLHOUSE_MODELS to a folder of model folders to run this');
  const engine = await openEngine();
  t.onTestFinished(() => engine.close());
  const model = await loadDecoder(engine, join(models, 'smollm2-135m'));
  const generator = await createGenerator(engine, model);
  const generate = async (cases: typeof CASES) => {
    const prompts = cases.map(({ prompt }) => Int32Array.from(prompt));
    const results = await generator.generateGreedy(prompts, { maxNewTokens: 24, stopIds: model.config.eosTokenIds });
    assert.deepEqual(
      results.map(({ ids }) => [...ids]),
      cases.map(({ ids }) => ids),
    );
  };
  for (const one of CASES) await generate([one]);
  await generate(CASES);
});
