import { readFileSync } from 'node:fs';
import { openSafetensors } from '@stillhouse/checkpoint';
import type { TailKind } from '@stillhouse/objectives';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { Engine } from '@stillhouse/runtime';
import { expectClose, expectSmallDifference } from '@stillhouse/testing';
import { openGoldenStudent, readStep, TRAIN } from './golden-student.ts';

const STEPS = 10;
const LEARNING_RATE = 1e-3;

const readLosses = (path: string) =>
  JSON.parse(readFileSync(`${TRAIN}${path}`, 'utf8')) as Record<
    'total' | 'kd' | 'ce' | 'hidden' | 'grad_norm',
    number[]
  >;

/**
 * Ten AdamW steps of the golden student on an engine: losses and gradient norms of each, the gradients of the first and
 * the weights after the last are those that PyTorch has.
 */
export async function expectTenSteps(
  engine: Engine,
  tail: TailKind,
  float: FloatDtype,
  options: Parameters<typeof openGoldenStudent>[3] = {},
): Promise<void> {
  const student = await openGoldenStudent(engine, tail, float, options);
  const expected = readLosses(`${float}/losses${tail === 'tail' ? '' : '-bucket'}.json`);
  for (let step = 1; step <= STEPS; step++) {
    const { microBatches, targets } = await readStep(step - 1, tail, float);
    const { sums, gradientNorm } = await student.computeGradients(microBatches, targets);
    if (step === 1 && tail === 'tail') {
      const gradients = await openSafetensors(`${TRAIN}${float}/gradients-step-1.safetensors`);
      for (const { name, gradient } of student.parameters.trained) {
        expectClose((await engine.download(gradient)) as Float64Array, await gradients.read(name, 'float64'), {
          absolute: float === 'float64' ? 1e-12 : 2e-6,
          where: `gradient of ${name}`,
        });
      }
      await gradients.close();
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
    expectSmallDifference((await engine.download(weight)) as Float64Array, await weights.read(name, 'float64'), {
      ...bounds,
      where: name,
    });
  }
  await weights.close();
}
