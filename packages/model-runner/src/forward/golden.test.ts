import assert from 'node:assert/strict';
import { arrangeByPlace, openModelWeights, openSafetensors } from '@stillhouse/checkpoint';
import { blockGradientGraph, blockGraph, gradientName } from '@stillhouse/decoder';
import { type FloatDtype, GraphBuilder } from '@stillhouse/onnx-graph';
import { type DeviceTensor, openEngine } from '@stillhouse/runtime';
import type { TensorData } from '@stillhouse/tensor-types';
import { expectClose } from '@stillhouse/testing';
import { afterAll, test } from 'vitest';
import {
  blockCall,
  compileForwardPrograms,
  embeddingCall,
  freeBatch,
  packSequences,
  padSequences,
  type TokenBatch,
  takeLayerPrograms,
  uploadBatch,
} from '../index.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

const GOLDEN = new URL('../../../../test/golden/', import.meta.url).pathname;
const MODELS = ['qwen2-tiny', 'qwen2-tiny-untied', 'llama-tiny', 'llama3-rope-tiny'];

async function openModel(name: string, float: FloatDtype) {
  const { config, tensors, close } = await openModelWeights(`${GOLDEN}${name}`);
  const uploaded = new Map<string, DeviceTensor>();
  for (const [tensor, { shape, read }] of tensors) uploaded.set(tensor, engine.upload(await read(float), float, shape));
  await close();
  return { config, ...arrangeByPlace(config, uploaded) };
}

type Model = Awaited<ReturnType<typeof openModel>>;

/** Hidden states by the goldens' names, and logits, of a batch: [B·T, width] each. */
async function forward(model: Model, batch: TokenBatch, float: FloatDtype) {
  const { config } = model;
  const programs = await compileForwardPrograms(engine, config, float);
  const withAttention = await engine.compile(blockGraph(config, float, { attention: true }));
  const g = new GraphBuilder('head', float);
  g.output(
    'logits',
    g.gemm(g.floatInput('x', ['N', config.hiddenSize]), g.floatInput('head', [config.vocabSize, config.hiddenSize]), {
      transB: true,
    }),
  );
  const head = await engine.compile(g);
  const tensors = uploadBatch(engine, programs, batch);
  const layerPrograms = await takeLayerPrograms(programs, batch);
  const states = Array.from({ length: config.layerCount + 1 }, () =>
    engine.allocate(float, [tensors.tokens, config.hiddenSize]),
  );
  const hidden = engine.allocate(float, [tensors.tokens, config.hiddenSize]);
  const logits = engine.allocate(float, [tensors.tokens, config.vocabSize]);
  const attention = engine.allocate(float, [batch.rows, config.headCount, batch.length, batch.length]);
  const last = config.layerCount - 1;
  await engine.run([
    ...tensors.biasCalls,
    embeddingCall(programs, tensors, model.embedding, states[0]!),
    ...model.layers.map((weights, layer) =>
      blockCall(layerPrograms, tensors, { weights, x: states[layer]!, y: states[layer + 1]! }),
    ),
    {
      kind: 'run',
      program: withAttention,
      inputs: { x: states[last]!, ...tensors.tables, ...model.layers[last]! },
      outputs: { y: states[last + 1]!, attention },
    },
    { kind: 'run', program: programs.finalNorm, inputs: { x: states.at(-1)!, norm: model.norm }, outputs: { hidden } },
    { kind: 'run', program: head, inputs: { x: hidden, head: model.head }, outputs: { logits } },
  ]);
  const named: Record<string, DeviceTensor> = { 'hidden.norm': hidden, logits, 'attention.last': attention };
  states.forEach((state, i) => {
    named[`hidden.${i}`] = state;
  });
  const values = await engine.downloadMany(Object.values(named));
  freeBatch(engine, tensors);
  return new Map(Object.keys(named).map((name, i) => [name, values[i]!]));
}

/** The rows of ids in the goldens' inputs, without padding. */
async function readRows(name: string) {
  const inputs = await openSafetensors(`${GOLDEN}${name}/inputs.safetensors`);
  const [rows, length] = inputs.tensors.get('input_ids')!.shape as [number, number];
  const ids = Array.from((await inputs.readInt('input_ids')) as unknown as ArrayLike<bigint>, Number);
  const mask = Array.from((await inputs.readInt('attention_mask')) as unknown as ArrayLike<bigint>, Number);
  const sequences = Array.from({ length: rows }, (_, row) =>
    Int32Array.from(ids.slice(row * length, (row + 1) * length).filter((_, t) => mask[row * length + t] === 1)),
  );
  return { sequences, length, mask };
}

/** Elements of [tokens, width] where a token is real, in the order of the sequences. */
function realTokens(values: TensorData, batch: TokenBatch): number[] {
  const width = values.length / (batch.rows * batch.length);
  return batch.placements.flatMap(({ row, column, length }) => {
    const start = (row * batch.length + column) * width;
    return Array.from(values.subarray(start, start + length * width) as ArrayLike<number>);
  });
}

for (const name of MODELS) {
  for (const float of ['float32', 'float64'] as const) {
    test(`${name}: hidden states, attention and logits agree with transformers, ${float}`, async () => {
      const model = await openModel(name, float);
      const { sequences, mask, length } = await readRows(name);
      const batch = padSequences(sequences);
      const ours = await forward(model, batch, float);
      const file = float === 'float64' ? 'expected64' : 'expected';
      const expected = await openSafetensors(`${GOLDEN}${name}/${file}.safetensors`);
      for (const [tensor, values] of ours) {
        if (!expected.tensors.has(tensor)) continue;
        const wanted = await expected.read(tensor, 'float64');
        const absolute = float === 'float64' ? 1e-10 : tensor === 'attention.last' ? 1e-5 : 5e-5;
        if (tensor === 'attention.last') {
          const heads = model.config.headCount;
          const isReal = (i: number) =>
            mask[Math.floor(i / (heads * length * length)) * length + (Math.floor(i / length) % length)] === 1;
          const pick = (array: ArrayLike<number>) => Array.from(array).filter((_, i) => isReal(i));
          expectClose(pick(values as Float32Array), pick(wanted), { absolute, where: `${name} ${tensor}` });
        } else {
          expectClose(realTokens(values, batch), realTokens(wanted, batch), { absolute, where: `${name} ${tensor}` });
        }
      }
    });
  }

  test(`${name}: packed equals padded`, async () => {
    const model = await openModel(name, 'float64');
    const { sequences } = await readRows(name);
    const short = [sequences[0]!, sequences[1]!.slice(0, 9), sequences[1]!.slice(0, 11)];
    const [padded, packed] = [padSequences(short), packSequences(short)];
    assert.ok(packed.rows < padded.rows);
    const [a, b] = [await forward(model, padded, 'float64'), await forward(model, packed, 'float64')];
    expectClose(realTokens(b.get('logits')!, packed), realTokens(a.get('logits')!, padded), {
      absolute: 1e-11,
      where: 'logits',
    });
  });
}

test('a layer backwards equals the gradient of the whole graph, and accumulates', async () => {
  const model = await openModel('qwen2-tiny', 'float64');
  const { config } = model;
  const { sequences } = await readRows('qwen2-tiny');
  const batch = packSequences(sequences);
  const programs = await compileForwardPrograms(engine, config, 'float64');
  const tensors = uploadBatch(engine, programs, batch);
  const gradientGraph = blockGradientGraph(config, 'float64');
  const gradient = await engine.compile(gradientGraph);
  const random = (shape: readonly number[]) => {
    const count = shape.reduce((product, dim) => product * dim, 1);
    return engine.upload(
      Float64Array.from({ length: count }, (_, i) => Math.sin(i * 1.7 + count)),
      'float64',
      shape,
    );
  };
  const shape = [tensors.tokens, config.hiddenSize];
  const [x, dy, dx, dx2] = [
    random(shape),
    random(shape),
    engine.allocate('float64', shape),
    engine.allocate('float64', shape),
  ];
  const weights = model.layers[0]!;
  const names = Object.keys(weights);
  const accumulators = Object.fromEntries(
    names.map((name) => [gradientName(name), engine.allocate('float64', weights[name]!.shape)]),
  );
  const outputs = Object.fromEntries(
    names.map((name) => [`${gradientName(name)}.sum`, accumulators[gradientName(name)]!]),
  );
  const call = {
    kind: 'run',
    program: gradient,
    inputs: { x, dy, ...tensors.tables, ...weights, ...accumulators },
    outputs: { dx, ...outputs },
  } as const;
  await engine.run([...tensors.biasCalls, call]);
  const once = await engine.downloadMany(names.map((name) => accumulators[gradientName(name)]!));
  await engine.run([{ ...call, outputs: { dx: dx2, ...outputs } }]);
  const twice = await engine.downloadMany(names.map((name) => accumulators[gradientName(name)]!));
  for (const [i, name] of names.entries()) {
    const doubled = (once[i] as Float64Array).map((value) => 2 * value);
    expectClose(twice[i] as Float64Array, doubled, { absolute: 1e-10, where: name });
  }
  // Central differences along random directions, through the forward program alone.
  const forward = await programs.block.take(1);
  const y = engine.allocate('float64', shape);
  const value = async (input: DeviceTensor, used: Record<string, DeviceTensor>) => {
    await engine.run([
      { kind: 'run', program: forward, inputs: { x: input, ...tensors.tables, ...used }, outputs: { y } },
    ]);
    const [out, seed] = (await engine.downloadMany([y, dy])) as [Float64Array, Float64Array];
    return out.reduce((sum, one, i) => sum + one * seed[i]!, 0);
  };
  for (const [i, name] of names.entries()) {
    const original = (await engine.download(weights[name]!)) as Float64Array;
    const direction = original.map((_, k) => Math.cos(k * 0.9 + i));
    const shifted = (h: number) =>
      engine.upload(
        original.map((one, k) => one + h * direction[k]!),
        'float64',
        weights[name]!.shape,
      );
    const numeric =
      ((await value(x, { ...weights, [name]: shifted(1e-6) })) -
        (await value(x, { ...weights, [name]: shifted(-1e-6) }))) /
      2e-6;
    const analytic = (once[i] as Float64Array).reduce((sum, one, k) => sum + one * direction[k]!, 0);
    assert.ok(
      Math.abs(numeric - analytic) < 1e-6 * Math.max(1, Math.abs(analytic)),
      `${name}: ${numeric} against ${analytic}`,
    );
  }
});
