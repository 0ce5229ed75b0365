import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, test } from 'node:test';
import { openSafetensors } from '@stillhouse/checkpoint';
import { expectClose, expectSmallDifference, openEngine } from '@stillhouse/testing';
import { openGoldenStudent, readStep, TRAIN } from './testing/golden-student.ts';

const engine = await openEngine({ threads: 1 });
after(() => engine.close());

const STEPS = 10;
const LEARNING_RATE = 1e-3;

const readLosses = (path: string) =>
  JSON.parse(readFileSync(`${TRAIN}${path}`, 'utf8')) as Record<
    'total' | 'kd' | 'ce' | 'hidden' | 'grad_norm',
    number[]
  >;

for (const float of ['float32', 'float64'] as const) {
  for (const tail of ['tail', 'bucket'] as const) {
    test(`ten AdamW steps with the ${tail} label are those of PyTorch, ${float}`, async () => {
      const student = await openGoldenStudent(engine, tail, float);
      const expected = readLosses(`${float}/losses${tail === 'tail' ? '' : '-bucket'}.json`);
      for (let step = 1; step <= STEPS; step++) {
        const { microBatches, targets } = await readStep(step - 1, tail, float);
        const { sums, gradientNorm } = await student.computeGradients(microBatches, targets);
        if (step === 1 && tail === 'tail') {
          const gradients = await openSafetensors(`${TRAIN}${float}/gradients-step-1.safetensors`);
          for (const { name, gradient } of student.parameters.trained) {
            expectClose((await engine.download(gradient)) as Float64Array, await gradients.readFloat64(name), {
              absolute: float === 'float64' ? 1e-12 : 2e-6,
              where: `gradient of ${name}`,
            });
          }
        }
        const ours = [sums.loss, sums.kl, sums.ce, sums.features[0]!, gradientNorm];
        const theirs = (['total', 'kd', 'ce', 'hidden', 'grad_norm'] as const).map((key) => expected[key][step - 1]!);
        expectClose(ours, theirs, {
          relative: float === 'float64' ? 1e-11 : 3e-5,
          where: `step ${step}: total, kd, ce, hidden, grad_norm`,
        });
        await student.update(step, LEARNING_RATE, gradientNorm);
      }
      if (tail === 'bucket') return;
      const weights = await openSafetensors(`${TRAIN}${float}/weights-after-10.safetensors`);
      const bounds =
        float === 'float64'
          ? { mean: 1e-12, quantile999: 1e-11, worst: 1e-9 }
          : { mean: 1e-6, quantile999: 1e-5, worst: 2e-3 };
      for (const { name, weight } of student.parameters.trained) {
        expectSmallDifference((await engine.download(weight)) as Float64Array, await weights.readFloat64(name), {
          ...bounds,
          where: name,
        });
      }
    });
  }
}

async function gradientsOf(groups: readonly (readonly number[])[], chunkPositions: number, recompute = false) {
  const student = await openGoldenStudent(engine, 'tail', 'float64', { chunkPositions, recompute });
  const { microBatches, targets } = await readStep(0, 'tail', 'float64', groups);
  const { sums } = await student.computeGradients(microBatches, targets);
  return {
    sums,
    gradients: (await engine.downloadMany(
      student.parameters.trained.map(({ gradient }) => gradient),
    )) as readonly Float64Array[],
  };
}

test('accumulated micro-batches equal one batch: one denominator whatever the split', async () => {
  const whole = await gradientsOf([[0, 1, 2]], 128);
  const split = await gradientsOf([[0], [1, 2]], 128);
  assert.ok(Math.abs(whole.sums.loss - split.sums.loss) < 1e-13);
  whole.gradients.forEach((gradient, i) => {
    expectClose(split.gradients[i]!, gradient, { absolute: 1e-14, where: `gradient ${i}` });
  });
});

test('a loss in chunks equals the loss at once, whatever the chunk', async () => {
  const whole = await gradientsOf([[0, 1, 2]], 128);
  for (const chunk of [1, 5, 7]) {
    const chunked = await gradientsOf([[0, 1, 2]], chunk);
    assert.ok(Math.abs(whole.sums.loss - chunked.sums.loss) < 1e-13);
    whole.gradients.forEach((gradient, i) => {
      expectClose(chunked.gradients[i]!, gradient, { absolute: 1e-14, where: `chunk ${chunk}, gradient ${i}` });
    });
  }
});

test('activations that are kept and activations that are computed again give the same gradients', async () => {
  const kept = await gradientsOf([[0, 1, 2]], 128, false);
  const again = await gradientsOf([[0, 1, 2]], 128, true);
  kept.gradients.forEach((gradient, i) => {
    expectClose(again.gradients[i]!, gradient, { absolute: 1e-14, where: `gradient ${i}` });
  });
});
