import assert from 'node:assert/strict';
import { packSequences } from '@stillhouse/model-runner';
import { encodeModel, type GraphBuilder } from '@stillhouse/onnx-graph';
import { openEngine } from '@stillhouse/runtime';
import { expectClose } from '@stillhouse/testing';
import { afterAll, test } from 'vitest';
import { openGoldenStudent, readStep } from '../testing/golden-student.ts';
import { expectTenSteps } from '../testing/ten-steps.ts';
import type { StudentOptions } from './student.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

for (const float of ['float32', 'float64'] as const) {
  for (const tail of ['tail', 'bucket'] as const) {
    test(`ten AdamW steps with the ${tail} label are those of PyTorch, ${float}`, () =>
      expectTenSteps(engine, tail, float));
  }
}

test('the models that CUDA gets take the same ten steps, computed on a CPU', () => {
  const compile = (graph: GraphBuilder) => engine.compileModel(encodeModel(graph, 'cuda'), { name: graph.name });
  return expectTenSteps({ ...engine, device: 'cuda', compile }, 'tail', 'float32');
});

async function gradientsOf(
  groups: readonly (readonly number[])[],
  chunkPositions: number,
  changes: Partial<StudentOptions> = {},
) {
  const student = await openGoldenStudent(engine, 'tail', 'float64', { chunkPositions, ...changes });
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
  const kept = await gradientsOf([[0, 1, 2]], 128, { recompute: false });
  const again = await gradientsOf([[0, 1, 2]], 128, { recompute: true });
  kept.gradients.forEach((gradient, i) => {
    expectClose(again.gradients[i]!, gradient, { absolute: 1e-14, where: `gradient ${i}` });
  });
});

test('rows that go through the layers in tiles give the gradients of rows that go through together', async () => {
  const together = await gradientsOf([[0, 1, 2]], 128);
  for (const recompute of [false, true]) {
    const tiled = await gradientsOf([[0, 1, 2]], 128, { tileTokens: 1, recompute });
    together.gradients.forEach((gradient, i) => {
      expectClose(tiled.gradients[i]!, gradient, { absolute: 1e-14, where: `gradient ${i}` });
    });
  }
});

test('rows whose queries attend in blocks give the gradients of rows that attend as a whole', async () => {
  const blocksOf = async (blockLength: number | undefined, changes: Partial<StudentOptions>) => {
    const student = await openGoldenStudent(engine, 'tail', 'float64', changes);
    const { microBatches, targets } = await readStep(0, 'tail', 'float64');
    const laidOut = microBatches.map((one) => ({
      ...one,
      batch: packSequences(one.sequences, undefined, blockLength),
    }));
    const { sums } = await student.computeGradients(laidOut, targets);
    const tensors = student.parameters.trained.map(({ gradient }) => gradient);
    const gradients = (await engine.downloadMany(tensors)) as readonly Float64Array[];
    return { blocks: laidOut.map(({ batch }) => batch.queryBlocks), sums, gradients };
  };
  const whole = await blocksOf(undefined, {});
  assert.deepEqual(whole.blocks, [1]);
  for (const [recompute, tileTokens] of [
    [false, 1],
    [true, 512],
  ] as const) {
    const blocked = await blocksOf(5, { recompute, tileTokens });
    assert.deepEqual(blocked.blocks, [4]);
    assert.ok(Math.abs(whole.sums.loss - blocked.sums.loss) < 1e-13);
    whole.gradients.forEach((gradient, i) => {
      expectClose(blocked.gradients[i]!, gradient, { absolute: 1e-14, where: `gradient ${i}` });
    });
  }
});
