import assert from 'node:assert/strict';
import type { ProductPrecision } from '@stillhouse/onnx-graph';
import { openEngine } from '@stillhouse/runtime';
import { expectClose, findDeviceObstacle, unless } from '@stillhouse/testing';
import { describe, test } from 'vitest';
import { openGoldenStudent, readStep } from '../testing/golden-student.ts';
import { expectResumedRunIsStraight } from '../testing/resumed-run.ts';
import { expectTenSteps } from '../testing/ten-steps.ts';

describe(
  'a training step on CUDA',
  unless(await findDeviceObstacle(() => openEngine({ device: 'cuda', threads: 1 }))),
  () => {
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

    test('coarser products take nearly the same ten steps', async () => {
      const exact = await lossesWith('float32');
      for (const [precision, relative] of [
        ['tf32', 2e-3],
        ['bfloat16', 2e-2],
      ] as const) {
        const losses = await lossesWith(precision);
        const off = Math.max(...losses.map((loss, i) => Math.abs(loss / exact[i]! - 1)));
        console.log(`${precision}: losses and gradient norms off by ${off.toExponential(1)} at most`);
        expectClose(losses, exact, { relative, where: precision });
        assert.notDeepEqual(losses, exact, `${precision} changes nothing`);
      }
    });

    test('a run that is cut short and resumed equals a straight one bit for bit', async (t) => {
      const { straight } = await expectResumedRunIsStraight(t, { device: 'cuda' });
      assert.ok(straight.deviceBytes !== undefined && straight.deviceBytes > 0);
    });
  },
);
