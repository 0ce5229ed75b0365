import assert from 'node:assert/strict';
import { openModelWeights } from '@stillhouse/checkpoint';
import {
  ATTENTION_OUTPUT,
  ATTENTION_SEED,
  adapterParameters,
  type BlockGradientOptions,
  blockGradientGraph,
  blockGraph,
  cutIntoBlocks,
  emitBlockBias,
  emitBlockedAttention,
  gradientName,
  savingBlockGraphs,
} from '@stillhouse/decoder';
import { gradientError } from '@stillhouse/gradient-check';
import type { GraphBuilder } from '@stillhouse/onnx-graph';
import { type DeviceTensor, openEngine, type Program } from '@stillhouse/runtime';
import { expectClose } from '@stillhouse/testing';
import { afterAll, test } from 'vitest';
import { compileForwardPrograms, freeBatch, packSequences, type TokenBatch, uploadBatch } from '../index.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

const GOLDEN = new URL('../../../../test/golden/qwen2-tiny', import.meta.url).pathname;
const model = await openModelWeights(GOLDEN);
const { config } = model;
const adapter = { rank: 2, scale: 0.5, targets: ['q_proj', 'v_proj'] } as const;

const waves = (shape: readonly number[], phase: number) => {
  const count = shape.reduce((product, dim) => product * dim, 1);
  return engine.upload(
    Float64Array.from({ length: count }, (_, i) => Math.sin(i * 1.7 + phase)),
    'float64',
    shape,
  );
};
const weights: Record<string, DeviceTensor> = {};
for (const [name, { shape, read }] of Object.entries(model.layers[0]!)) {
  weights[name] = engine.upload(await read('float64'), 'float64', shape);
}
await model.close();
for (const { name, shape } of adapterParameters(config, adapter)) weights[name] = waves(shape, 3);
const names = Object.keys(weights);
const programs = await compileForwardPrograms(engine, config, 'float64', adapter);

test('rows up to the block length are one block, longer ones a power of four of whole blocks', () => {
  assert.deepEqual(cutIntoBlocks(512), { queryBlocks: 1, length: 512 });
  assert.deepEqual(cutIntoBlocks(513), { queryBlocks: 4, length: 516 });
  assert.deepEqual(cutIntoBlocks(2048), { queryBlocks: 4, length: 2048 });
  assert.deepEqual(cutIntoBlocks(8193), { queryBlocks: 64, length: 8256 });
  assert.deepEqual(cutIntoBlocks(12, 3), { queryBlocks: 4, length: 12 });
});

const [B, KV, GROUP, Q, DIM] = [2, 2, 2, 2, 3] as const;

for (const blocks of [2, 3]) {
  test(`${blocks} blocks: the closed gradient agrees with central differences in float64`, async () => {
    const integers = (g: GraphBuilder, numbers: readonly number[], shape: readonly number[]) =>
      g.constant(Int32Array.from(numbers), 'int32', shape);
    const error = await gradientError(engine, {
      inputs: [
        { shape: [B, KV, blocks, GROUP, Q, DIM] },
        { shape: [B, KV, blocks, Q, DIM] },
        { shape: [B, KV, blocks, Q, DIM] },
      ],
      build: (g, [q, k, v]) => {
        const length = blocks * Q;
        // The second row has two segments, which part in the middle of a block.
        const ids = Array.from({ length: B * length }, (_, i) => (i < length ? 1 : i % length < 1 ? 2 : 3));
        const segments = integers(g, ids, [B, blocks, Q]);
        const columns = integers(g, [...Array(length).keys()], [blocks, Q]);
        const emitBlock = (block: number) => emitBlockBias(g, segments, columns, block);
        return [emitBlockedAttention(g, [q!, k!, v!], { blocks, blockLength: Q, emitBlock })];
      },
    });
    assert.ok(error < 1e-7, `relative error ${error}`);
  });
}

const WANTED: BlockGradientOptions = { adapter, hasAttentionSeed: true };

/** Rows of 12 columns: one of one sequence, one of two, one of two and padding. */
const SEQUENCES = [12, 7, 5, 6, 4].map((length) => new Int32Array(length));

/** y, attention output, dx and the gradient of each weight, by name, where a column holds a token. */
async function runLayer(batch: TokenBatch, isSaving: boolean): Promise<ReadonlyMap<string, readonly number[]>> {
  const { queryBlocks } = batch;
  const tensors = uploadBatch(engine, programs, batch);
  const shape = [tensors.tokens, config.hiddenSize];
  const allocate = () => engine.allocate('float64', shape);
  const given = { ...tensors.tables, ...tensors.shared, ...weights, x: waves(shape, 0) };
  const outputs = { y: allocate(), [ATTENTION_OUTPUT]: allocate() };
  const back = { ...given, dy: waves(shape, 1), [ATTENTION_SEED]: waves(shape, 2) };
  const sums = names.map((name) => {
    const tensor = engine.allocate('float64', weights[name]!.shape);
    engine.fill(tensor, 0);
    return [gradientName(name), tensor] as const;
  });
  const gradients = { dx: allocate(), ...Object.fromEntries(sums.map(([name, sum]) => [`${name}.sum`, sum])) };
  const options = { ...WANTED, queryBlocks };
  const graphs = isSaving
    ? savingBlockGraphs(config, 'float64', options)
    : {
        forward: blockGraph(config, 'float64', { queryBlocks, adapter, exposesAttention: true }),
        gradient: blockGradientGraph(config, 'float64', options),
      };
  const forward = await engine.compile(graphs.forward);
  const gradient = await engine.compile(graphs.gradient);
  const saved = allocateSaved(forward, batch);
  const pick = (program: Program, from: Readonly<Record<string, DeviceTensor>>) =>
    Object.fromEntries(program.inputNames.map((name) => [name, from[name]!]));
  await engine.run([
    ...tensors.biasCalls,
    { kind: 'run', program: forward, inputs: given, outputs: { ...outputs, ...saved } },
    {
      kind: 'run',
      program: gradient,
      inputs: pick(gradient, { ...back, ...saved, ...Object.fromEntries(sums) }),
      outputs: gradients,
    },
  ]);
  const all = { ...outputs, ...gradients };
  const values = await engine.downloadMany(Object.values(all));
  freeBatch(engine, tensors);
  return new Map(Object.keys(all).map((name, i) => [name, Array.from(values[i] as Float64Array)]));
}

function allocateSaved(forward: Program, { rows, length, queryBlocks }: TokenBatch) {
  const sizes: Readonly<Record<string, number>> = { B: rows, T: length, Q: length / queryBlocks };
  const sizeOf = (dim: number | string) =>
    String(dim)
      .split('*')
      .reduce((product, factor) => product * (sizes[factor] ?? Number(factor)), 1);
  const ports = forward.outputs.filter(({ name }) => name.startsWith('saved.'));
  // What grows with the square of the length is kept by a layer of one block alone.
  const keepsWeights = ports.some(({ name }) => name.includes('Softmax'));
  assert.equal(keepsWeights, ports.length > 0 && queryBlocks === 1);
  return Object.fromEntries(ports.map(({ name, shape }) => [name, engine.allocate('float64', shape.map(sizeOf))]));
}

for (const isSaving of [false, true]) {
  test(`a layer in blocks is the layer as a whole, forwards and backwards, ${isSaving ? 'kept' : 'computed again'}`, async () => {
    const batch = packSequences(SEQUENCES);
    assert.deepEqual([batch.rows, batch.length, batch.queryBlocks], [3, 12, 1]);
    const whole = await runLayer(batch, isSaving);
    for (const queryBlocks of [2, 3, 4]) {
      const blocked = await runLayer({ ...batch, queryBlocks }, isSaving);
      assert.deepEqual([...blocked.keys()], [...whole.keys()]);
      for (const [name, values] of whole) {
        expectClose(blocked.get(name)!, values, {
          absolute: 1e-12,
          relative: 1e-12,
          where: `${queryBlocks} blocks, ${name}`,
        });
      }
    }
  });
}

test('a layer in 64 blocks is compiled in seconds, as the planner of memory has no shapes to compare', async () => {
  const before = process.cpuUsage();
  const program = await engine.compile(blockGradientGraph(config, 'float32', { queryBlocks: 64 }));
  const { user, system } = process.cpuUsage(before);
  program.release();
  // A third of this on two slow cores, and twice as much where ONNX Runtime knows the shapes.
  assert.ok(user + system < 5e6, `${user + system} microseconds of processor time`);
});
