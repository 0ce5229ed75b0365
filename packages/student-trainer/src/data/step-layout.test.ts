import assert from 'node:assert/strict';
import { openSafetensors, readModelConfig } from '@stillhouse/checkpoint';
import type { TokenBatch } from '@stillhouse/model-runner';
import { openEngine } from '@stillhouse/runtime';
import { expectClose, randomNormals, randomUniforms } from '@stillhouse/testing';
import fc from 'fast-check';
import { afterAll, test } from 'vitest';
import type { MicroBatch } from '../step/micro-batch.ts';
import { createStudent } from '../step/student.ts';
import { groupByLength, layOut, measureColumnCost } from './step-layout.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

const STUDENT = new URL('../../../../test/golden/qwen2-tiny', import.meta.url).pathname;
const lengths = fc.array(fc.integer({ min: 1, max: 50 }), { minLength: 1, maxLength: 40 });

test('micro-batches have the rows of the step, each once, none empty, from the shortest to the longest', () => {
  fc.assert(
    fc.property(lengths, fc.integer({ min: 1, max: 8 }), (rowLengths, parts) => {
      const rows = [...rowLengths.keys()];
      const groups = groupByLength(rows, rowLengths, parts, 0.01);
      assert.deepEqual(
        groups.flat().sort((a, b) => a - b),
        rows,
      );
      assert.ok(groups.length <= parts && groups.every((group) => group.length > 0));
      const ordered = groups.flat().map((row) => rowLengths[row]!);
      assert.deepEqual(
        ordered,
        [...ordered].sort((a, b) => a - b),
      );
    }),
  );
});

test('rows of like length share a micro-batch, and packing leaves less padding than one row a line', () => {
  const uniform = randomUniforms(7);
  const rowLengths = Array.from({ length: 60 }, () => 10 + Math.floor(uniform() * 190));
  const tokens = rowLengths.reduce((sum, length) => sum + length, 0);
  const measure = (parts: number, batching: 'packed' | 'bucketed') => {
    const groups = groupByLength([...rowLengths.keys()], rowLengths, parts, 1e-3);
    const computed = groups.map((group) => {
      const { rows, length } = layOut(
        group.map((row) => new Int32Array(rowLengths[row]!)),
        batching,
        1e-3,
      );
      return rows * length;
    });
    return 1 - tokens / computed.reduce((sum, area) => sum + area, 0);
  };
  const [packed, bucketed, whole] = [measure(4, 'packed'), measure(4, 'bucketed'), measure(1, 'bucketed')];
  assert.ok(packed < 0.1 && packed < bucketed && bucketed < 0.6 * whole, `${packed} ${bucketed} ${whole}`);
});

/** Losses and gradients in float64 of rows with full labels, laid out as the groups say. */
async function openGradients() {
  const config = await readModelConfig(STUDENT);
  const weights = await openSafetensors(`${STUDENT}/model.safetensors`);
  const [normal, uniform] = [randomNormals(1), randomUniforms(2)];
  const width = 8;
  const normals = (count: number) => Float64Array.from({ length: count }, () => normal());
  const rows = [9, 3, 14, 5, 6, 2, 14].map((length) => {
    const sequence = Int32Array.from({ length }, () => Math.floor(uniform() * config.vocabSize));
    return { sequence, states: normals((length - 1) * width) };
  });
  const student = await createStudent(engine, {
    config,
    float: 'float64',
    read: (name) => weights.read(name, 'float64'),
    objective: { labels: { kind: 'full', teacherHidden: width }, divergence: { kind: 'forward-kl' } },
    scalars: { temperature: 2, alpha: 0.7, hiddenWeight: 0 },
    adamw: { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0, clip: 1 },
    vocabSize: config.vocabSize,
    chunkPositions: 7,
    teacherHead: engine.upload(normals(config.vocabSize * width), 'float64', [config.vocabSize, width]),
  });
  const targets = rows.reduce((sum, { sequence }) => sum + sequence.length - 1, 0);
  const makeBatch = (group: readonly number[], lay: (sequences: readonly Int32Array[]) => TokenBatch): MicroBatch => {
    const chosen = group.map((row) => rows[row]!);
    const at = chosen.flatMap(({ sequence }, row) =>
      Array.from({ length: sequence.length - 1 }, (_, position) => ({ row, position })),
    );
    const data = Float64Array.from(chosen.flatMap(({ states }) => [...states]));
    const sequences = chosen.map(({ sequence }) => sequence);
    return {
      sequences,
      batch: lay(sequences),
      labels: {
        count: at.length,
        rows: Int32Array.from(at, ({ row }) => row),
        positions: Int32Array.from(at, ({ position }) => position),
        labels: BigInt64Array.from(at, ({ row, position }) => BigInt(sequences[row]![position + 1]!)),
        teacher: new Map([['teacher.hidden', { dtype: 'float64', data, width }]]),
      },
    };
  };
  return {
    rows,
    columnCost: measureColumnCost(config),
    gradientsOf: async (microBatches: readonly MicroBatch[]) => {
      const { sums } = await student.computeGradients(microBatches, targets);
      const gradients = await engine.downloadMany(student.parameters.trained.map(({ gradient }) => gradient));
      return { sums, gradients: gradients as readonly Float64Array[] };
    },
    makeBatch,
  };
}

test('however rows are packed, losses and gradients are those of each row alone', async () => {
  const { rows, columnCost, gradientsOf, makeBatch } = await openGradients();
  const all = [...rows.keys()];
  const alone = await gradientsOf(all.map((row) => makeBatch([row], (one) => layOut(one, 'bucketed', columnCost))));
  const lengthsOf = rows.map(({ sequence }) => sequence.length);
  const layouts: Record<string, readonly MicroBatch[]> = {
    'all in one row': [makeBatch(all, (sequences) => layOut(sequences, 'packed', 0))],
    'packed by cost': [makeBatch(all, (sequences) => layOut(sequences, 'packed', columnCost))],
    'packed, in another order': [makeBatch([...all].reverse(), (sequences) => layOut(sequences, 'packed', 0.05))],
    'one a row': [makeBatch(all, (sequences) => layOut(sequences, 'bucketed', columnCost))],
    'three micro-batches of like length': groupByLength(all, lengthsOf, 3, columnCost).map((group) =>
      makeBatch(group, (sequences) => layOut(sequences, 'packed', columnCost)),
    ),
  };
  assert.equal(layouts['all in one row']![0]!.batch!.rows, 1);
  assert.ok(layouts['packed, in another order']![0]!.batch!.rows > 1);
  for (const [where, microBatches] of Object.entries(layouts)) {
    const { sums, gradients } = await gradientsOf(microBatches);
    expectClose([sums.loss, sums.kl, sums.ce], [alone.sums.loss, alone.sums.kl, alone.sums.ce], {
      relative: 1e-12,
      where,
    });
    gradients.forEach((gradient, i) => {
      expectClose(gradient, alone.gradients[i]!, { absolute: 1e-13, where: `${where}, gradient ${i}` });
    });
  }
});
