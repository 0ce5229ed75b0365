import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, type TestContext, test } from 'node:test';
import { openEngine, type ProductPrecision } from '@stillhouse/runtime';
import { resolveSettings } from '@stillhouse/settings';
import { expectClose, findCudaObstacle, makeTemporaryFolder } from '@stillhouse/testing';
import { TRAINING_SETTINGS, type TrainingSettings, trainStudent } from './index.ts';
import { openGoldenStudent, readStep } from './testing/golden-student.ts';
import { writeSyntheticCache } from './testing/synthetic-cache.ts';
import { expectTenSteps } from './testing/ten-steps.ts';

describe('a training step on CUDA', { skip: await findCudaObstacle() }, () => {
  test('ten steps are those of PyTorch, as closely as on a CPU', async () => {
    const engine = await openEngine({ device: 'cuda', threads: 1 });
    await expectTenSteps(engine, 'tail', 'float32');
    await engine.close();
  });

  const lossesWith = async (precision: ProductPrecision) => {
    const engine = await openEngine({ device: 'cuda', threads: 1, precision });
    const student = await openGoldenStudent(engine, 'tail', 'float32');
    const losses: number[] = [];
    for (let step = 1; step <= 10; step++) {
      const { microBatches, targets } = await readStep(step - 1, 'tail', 'float32');
      const { sums, gradientNorm } = await student.computeGradients(microBatches, targets);
      losses.push(sums.loss, gradientNorm);
      await student.update(step, 1e-3, gradientNorm);
    }
    await engine.close();
    return losses;
  };

  test('coarser products take nearly the same ten steps', async (t) => {
    const exact = await lossesWith('float32');
    for (const [precision, relative] of [
      ['tf32', 2e-3],
      ['bfloat16', 2e-2],
    ] as const) {
      const losses = await lossesWith(precision);
      const off = Math.max(...losses.map((loss, i) => Math.abs(loss / exact[i]! - 1)));
      t.diagnostic(`${precision}: losses and gradient norms off by ${off.toExponential(1)} at most`);
      expectClose(losses, exact, { relative, where: precision });
      assert.notDeepEqual(losses, exact, `${precision} changes nothing`);
    }
  });

  test('a run that is cut short and resumed equals a straight one bit for bit', async (t: TestContext) => {
    const folder = await makeTemporaryFolder(t);
    const cache = join(folder, 'cache');
    await writeSyntheticCache(cache, { vocabSize: 512, hiddenSize: 24, rows: 6, k: 12, temperatures: [1, 2] });
    const out = (name: string) => join(folder, name);
    const run = (name: string, given: Partial<TrainingSettings>, stopAt?: number) =>
      trainStudent(
        resolveSettings(TRAINING_SETTINGS, {
          student: new URL('../../../test/golden/qwen2-tiny', import.meta.url).pathname,
          ...{ cache, out: out(name), labels: 'topk', device: 'cuda' },
          ...{ steps: 4, batchTokens: 24, lr: 1e-3, threads: 1, checkpointEvery: 2, selectTokens: 0.5, ...given },
        }),
        {
          onStep: ({ step }) => {
            if (step === stopAt) throw new Error('stopped');
          },
        },
      );
    const { deviceBytes } = await run('straight', {});
    assert.ok(deviceBytes !== undefined && deviceBytes > 0);
    await assert.rejects(run('cut', {}, 3), /stopped/);
    await run('cut', { resume: true });
    assert.deepEqual(
      await readFile(join(out('cut'), 'model.safetensors')),
      await readFile(join(out('straight'), 'model.safetensors')),
    );
  });
});
