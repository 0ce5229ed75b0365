import assert from 'node:assert/strict';
import { openSafetensors } from '@stillhouse/checkpoint';
import { packSequences } from '@stillhouse/model-runner';
import { type Engine, openEngine } from '@stillhouse/runtime';
import { chooseSoftwareAdapter, expectClose, expectSmallDifference, unless } from '@stillhouse/testing';
import { afterAll, beforeAll, describe, test } from 'vitest';
import { openGoldenStudent, readStep } from '../testing/golden-student.ts';
import { expectResumedRunIsStraight } from '../testing/resumed-run.ts';
import { expectTenSteps } from '../testing/ten-steps.ts';

const obstacle = chooseSoftwareAdapter();

describe('a training step on WebGPU', unless(obstacle), () => {
  // Open for as long as the tests run: what one engine has compiled for the device the next need not compile again.
  let engine: Engine;
  beforeAll(async () => {
    engine = await openEngine({ device: 'webgpu', threads: 1 });
  });
  afterAll(() => engine.close());

  test('ten steps are those of PyTorch, as closely as on a CPU', () => expectTenSteps(engine, 'tail', 'float32'));

  test('rows whose queries attend in blocks give the gradients that they give on a CPU', async () => {
    const cpu = await openEngine({ threads: 1 });
    const gradientsOn = async (one: Engine) => {
      const student = await openGoldenStudent(one, 'tail', 'float32');
      const { microBatches, targets } = await readStep(0, 'tail', 'float32');
      const inBlocks = microBatches.map((given) => ({
        ...given,
        batch: packSequences(given.sequences, undefined, 1),
      }));
      assert.equal(inBlocks[0]!.batch.queryBlocks, 16);
      await student.computeGradients(inBlocks, targets);
      return one.downloadMany(student.parameters.trained.map(({ gradient }) => gradient));
    };
    const [theirs, ours] = [await gradientsOn(cpu), await gradientsOn(engine)];
    await cpu.close();
    theirs.forEach((gradient, i) => {
      expectClose(ours[i] as Float32Array, gradient as Float32Array, { absolute: 2e-6, where: `gradient ${i}` });
    });
  });

  test('a run that is cut short and resumed equals a straight one bit for bit, and one on the CPU nearly', async (t) => {
    const { run, modelOf } = await expectResumedRunIsStraight(t, { device: 'webgpu', recompute: 'always' });
    await run('cpu', { device: 'cpu' });
    const [gpu, cpu] = await Promise.all(['straight', 'cpu'].map((name) => openSafetensors(modelOf(name))));
    for (const name of cpu!.tensors.keys()) {
      const bounds = { mean: 1e-5, quantile999: 1e-3, worst: 1e-2 };
      expectSmallDifference(await gpu!.read(name, 'float64'), await cpu!.read(name, 'float64'), {
        ...bounds,
        where: name,
      });
    }
  });
});
