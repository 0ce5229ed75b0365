import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, test } from 'node:test';
import { openSafetensors, readModelConfig } from '@stillhouse/checkpoint';
import type { LabelArray, LabelArrays, Objective, TailKind } from '@stillhouse/objectives';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import { expectClose, expectSmallDifference, openEngine } from '@stillhouse/testing';
import type { MicroBatch } from './micro-batch.ts';
import { PROJECTION_NAME } from './parameters.ts';
import { createStudent, type Student } from './student.ts';

const engine = await openEngine({ threads: 1 });
after(() => engine.close());

const GOLDEN = new URL('../../../test/golden/', import.meta.url).pathname;
const TRAIN = `${GOLDEN}train-10-steps/`;
const STEPS = 10;
const [ROWS, LENGTH, K, HIDDEN] = [3, 16, 16, 64];
const LEARNING_RATE = 1e-3;

const batches = await openSafetensors(`${TRAIN}batches.safetensors`);
const integers = async (name: string) =>
  Array.from((await batches.readInt(name)) as unknown as ArrayLike<bigint>, Number);
const [ids, attention, labels, mask, topkIds] = await Promise.all(
  ['input_ids', 'attention_mask', 'labels', 'loss_mask', 'topk_ids'].map(integers),
);

/** Golden batches as micro-batches of the given row groups; masks there are aligned to positions. */
async function readStep(
  step: number,
  tail: TailKind,
  float: FloatDtype,
  groups: readonly (readonly number[])[] = [[0, 1, 2]],
) {
  const suffix = tail === 'tail' ? '_t2' : '';
  const [logprobs, tails, teacher] = await Promise.all(
    [`topk_logprobs${suffix}`, `tail_logprob${suffix}`, 'teacher_hidden'].map((name) => batches.readFloat64(name)),
  );
  const make = (values: readonly number[]) =>
    float === 'float64' ? Float64Array.from(values) : Float32Array.from(values);
  const microBatches = groups.map((rows): MicroBatch => {
    const at = (row: number, t: number) => (step * ROWS + row) * LENGTH + t;
    const targets = rows.flatMap((row, index) =>
      Array.from({ length: LENGTH }, (_, t) => ({ row, index, t })).filter(({ t }) => mask![at(row, t)] === 1),
    );
    const gather = (array: ArrayLike<number>, width: number) =>
      targets.flatMap(({ row, t }) => Array.from({ length: width }, (_, i) => array[at(row, t) * width + i]!));
    const array = (values: ArrayLike<number>, width: number | undefined): LabelArray => ({
      dtype: float,
      data: make(gather(values, width ?? 1)),
      width,
    });
    const arrays: LabelArrays = {
      count: targets.length,
      rows: Int32Array.from(targets, ({ index }) => index),
      positions: Int32Array.from(targets, ({ t }) => t),
      labels: BigInt64Array.from(gather(labels!, 1), BigInt),
      teacher: new Map<string, LabelArray>([
        ['teacher.topk_ids', { dtype: 'int64', data: BigInt64Array.from(gather(topkIds!, K), BigInt), width: K }],
        ['teacher.topk_logprobs', array(logprobs!, K)],
        ['teacher.tail_logprob', array(tails!, undefined)],
        ['teacher.final', array(teacher!, HIDDEN)],
      ]),
    };
    const sequences = rows.map((row) =>
      Int32Array.from(
        Array.from({ length: LENGTH }, (_, t) => t).filter((t) => attention![at(row, t)] === 1),
        (t) => ids![at(row, t)]!,
      ),
    );
    return { sequences, labels: arrays };
  });
  const targets = microBatches.reduce((sum, { labels: { count } }) => sum + count, 0);
  return { microBatches, targets };
}

async function openGoldenStudent(
  tail: TailKind,
  float: FloatDtype,
  chunkPositions = 128,
  recompute = false,
): Promise<Student> {
  const config = await readModelConfig(`${GOLDEN}qwen2-tiny`);
  const weights = await openSafetensors(`${GOLDEN}qwen2-tiny/model.safetensors`);
  const projection = await openSafetensors(`${TRAIN}projection.safetensors`);
  const objective: Objective = {
    labels: { kind: 'topk', k: K, tail, isWhole: false },
    divergence: { kind: 'forward-kl' },
    hidden: { loss: 'mse', teacherHidden: HIDDEN, hasProjection: true },
  };
  return createStudent(engine, {
    config,
    float,
    read: (name) => {
      const source = name === PROJECTION_NAME ? projection : weights;
      return float === 'float64' ? source.readFloat64(name) : source.readFloat32(name);
    },
    objective,
    scalars: { temperature: 2, alpha: 0.7, hiddenWeight: 0.1 },
    adamw: { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1, clip: 1 },
    vocabSize: config.vocabSize,
    chunkPositions,
    recompute,
  });
}

const readLosses = (path: string) =>
  JSON.parse(readFileSync(`${TRAIN}${path}`, 'utf8')) as Record<
    'total' | 'kd' | 'ce' | 'hidden' | 'grad_norm',
    number[]
  >;

for (const float of ['float32', 'float64'] as const) {
  for (const tail of ['tail', 'bucket'] as const) {
    test(`ten AdamW steps with the ${tail} label are those of PyTorch, ${float}`, async () => {
      const student = await openGoldenStudent(tail, float);
      const expected = readLosses(`${float}/losses${tail === 'tail' ? '' : '-bucket'}.json`);
      for (let step = 1; step <= STEPS; step++) {
        const { microBatches, targets } = await readStep(step - 1, tail, float);
        const { sums, gradientNorm } = await student.computeGradients(microBatches, targets);
        if (step === 1 && tail === 'tail') {
          const gradients = await openSafetensors(`${TRAIN}${float}/gradients-step-1.safetensors`);
          for (const { name, gradient } of student.parameters.all) {
            expectClose((await engine.download(gradient)) as Float64Array, await gradients.readFloat64(name), {
              absolute: float === 'float64' ? 1e-12 : 2e-6,
              where: `gradient of ${name}`,
            });
          }
        }
        const ours = [sums.loss, sums.kl, sums.ce, sums.hidden, gradientNorm];
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
      for (const { name, weight } of student.parameters.all) {
        expectSmallDifference((await engine.download(weight)) as Float64Array, await weights.readFloat64(name), {
          ...bounds,
          where: name,
        });
      }
    });
  }
}

async function gradientsOf(groups: readonly (readonly number[])[], chunkPositions: number, recompute = false) {
  const student = await openGoldenStudent('tail', 'float64', chunkPositions, recompute);
  const { microBatches, targets } = await readStep(0, 'tail', 'float64', groups);
  const { sums } = await student.computeGradients(microBatches, targets);
  return {
    sums,
    gradients: (await engine.downloadMany(
      student.parameters.all.map(({ gradient }) => gradient),
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
