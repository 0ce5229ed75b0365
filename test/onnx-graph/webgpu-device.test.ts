import assert from 'node:assert/strict';
import { GraphBuilder, type OperatorName, type Value, WEBGPU_OPERATORS } from '@stillhouse/onnx-graph';
import { openEngine } from '@stillhouse/runtime';
import type { Dtype } from '@stillhouse/tensor-types';
import { chooseSoftwareAdapter, expectClose, unless } from '@stillhouse/testing';
import { afterAll, beforeAll, describe, test } from 'vitest';

type Engine = Awaited<ReturnType<typeof openEngine>>;

interface Operand {
  readonly dtype?: Dtype;
  readonly shape: readonly number[];
  /** Integers and bools; floats are made up, between 0.2 and 2. */
  readonly values?: readonly number[];
}

interface OperatorCase {
  readonly inputs: readonly Operand[];
  readonly build: (g: GraphBuilder, inputs: readonly Value[]) => readonly Value[];
  /** Further element types of the first operand that the table lists and this case is compiled with, too. */
  readonly also?: readonly Dtype[];
}

const NUMBERS: readonly Dtype[] = ['int32'];
const matrix: Operand = { shape: [3, 5] };
const row: Operand = { shape: [5] };
const unary = (build: (g: GraphBuilder, x: Value) => Value, also: readonly Dtype[] = []): OperatorCase => ({
  inputs: [matrix],
  build: (g, [x]) => [build(g, x!)],
  also,
});
const binary = (build: (g: GraphBuilder, a: Value, b: Value) => Value): OperatorCase => ({
  inputs: [matrix, row],
  build: (g, [a, b]) => [build(g, a!, b!)],
  also: NUMBERS,
});
const bools = (shape: readonly number[]): Operand => ({ dtype: 'bool', shape, values: [1, 0, 0, 1, 1] });
const ids = (values: readonly number[], shape: readonly number[]): Operand => ({ dtype: 'int64', shape, values });

/** A case for each operator that the table says WebGPU computes. */
const CASES: { readonly [Name in OperatorName]?: OperatorCase } = {
  Add: binary((g, a, b) => g.add(a, b)),
  Sub: binary((g, a, b) => g.sub(a, b)),
  Mul: binary((g, a, b) => g.mul(a, b)),
  Div: binary((g, a, b) => g.div(a, b)),
  Max: binary((g, a, b) => g.max(a, b)),
  Min: binary((g, a, b) => g.min(a, b)),
  Neg: unary((g, x) => g.neg(x)),
  Abs: unary((g, x) => g.abs(g.neg(x))),
  Exp: unary((g, x) => g.exp(x)),
  Log: unary((g, x) => g.log(x)),
  Sqrt: unary((g, x) => g.sqrt(x)),
  Reciprocal: unary((g, x) => g.reciprocal(x)),
  Sigmoid: unary((g, x) => g.sigmoid(x)),
  Cos: unary((g, x) => g.cos(x)),
  Sin: unary((g, x) => g.sin(x)),
  Identity: unary((g, x) => g.identity(x), NUMBERS),
  Cast: unary((g, x) => g.cast(g.cast(x, 'int32'), 'float32'), ['bool', 'uint8']),
  Equal: binary((g, a, b) => g.equal(g.cast(a, 'int32'), g.cast(b, 'int32'))),
  Less: binary((g, a, b) => g.less(a, b)),
  GreaterOrEqual: binary((g, a, b) => g.greaterOrEqual(a, b)),
  And: { inputs: [bools([5]), bools([5])], build: (g, [a, b]) => [g.and(a!, g.not(b!))] },
  Not: { inputs: [bools([5])], build: (g, [x]) => [g.not(x!)] },
  Where: { inputs: [bools([5]), matrix, row], build: (g, [c, a, b]) => [g.where(c!, a!, b!)] },
  MatMul: { inputs: [{ shape: [2, 3, 5] }, { shape: [2, 5, 4] }], build: (g, [a, b]) => [g.matMul(a!, b!)] },
  Gemm: {
    inputs: [{ shape: [5, 3] }, { shape: [4, 5] }, { shape: [3, 4] }],
    build: (g, [a, b, c]) => [g.gemm(a!, b!, { transA: true, transB: true, c: c! }), g.gemm(b!, a!)],
  },
  Transpose: {
    inputs: [{ shape: [2, 3, 4, 5] }],
    build: (g, [x]) => [g.transpose(x!, [0, 2, 1, 3])],
    also: NUMBERS,
  },
  Reshape: unary((g, x) => g.reshape(x, [5, 3]), NUMBERS),
  Expand: { inputs: [{ shape: [3, 1] }], build: (g, [x]) => [g.expand(x!, [2, 3, 4])], also: NUMBERS },
  Concat: { inputs: [matrix, { shape: [3, 2] }], build: (g, [a, b]) => [g.concat([a!, b!], 1)] },
  Split: { inputs: [matrix], build: (g, [x]) => g.split(x!, 1, [2, 3]), also: NUMBERS },
  Slice: { inputs: [matrix], build: (g, [x]) => [g.slice(x!, 1, 1, 3)] },
  Gather: { inputs: [matrix, ids([2, 0, 2, 1], [4])], build: (g, [x, i]) => [g.gather(x!, i!)], also: NUMBERS },
  GatherElements: {
    inputs: [matrix, ids([4, 0, 1, 1, 2, 3], [3, 2])],
    build: (g, [x, i]) => [g.gatherElements(x!, i!, 1)],
  },
  ScatterElements: {
    inputs: [matrix, ids([4, 0, 1, 2, 2, 3], [3, 2]), { shape: [3, 2] }],
    build: (g, [x, i, u]) => [
      g.scatterElements(x!, i!, u!, { axis: 1, reduction: 'add' }),
      g.scatterElements(x!, i!, u!, { axis: 1 }),
    ],
  },
  ScatterND: {
    inputs: [matrix, ids([2, 0], [2, 1]), { shape: [2, 5] }],
    build: (g, [x, i, u]) => [g.scatterAddRows(x!, i!, u!), g.scatterRows(x!, i!, u!)],
  },
  ReduceSum: unary((g, x) => g.reduceSum(x, [0]), []),
  ReduceMean: unary((g, x) => g.reduceMean(x, [1], true), []),
  ReduceMax: unary((g, x) => g.reduceMax(x, [1]), []),
  ReduceLogSumExp: unary((g, x) => g.reduceLogSumExp(g.scale(x, 100), [1]), []),
  ReduceSumSquare: unary((g, x) => g.reduceSumSquare(x, [1]), []),
  Softmax: unary((g, x) => g.softmax(x, 1)),
  LogSoftmax: unary((g, x) => g.logSoftmax(g.scale(x, 100), 1), []),
  RMSNormalization: { inputs: [matrix, row], build: (g, [x, w]) => [g.rmsNormalization(x!, w!, 1e-3)] },
  RotaryEmbedding: {
    inputs: [{ shape: [2, 3, 8] }, { shape: [2, 3, 2] }, { shape: [2, 3, 2] }],
    build: (g, [x, cos, sin]) => [g.rotaryEmbedding(x!, cos!, sin!, 2)],
  },
  TopK: {
    inputs: [matrix],
    build: (g, [x]) => {
      const { values, indices } = g.topK(x!, 2, 1);
      return [values, indices];
    },
  },
  ArgMax: unary((g, x) => g.argMax(x, 1), []),
};

const countElements = (shape: readonly number[]) => shape.reduce((product, dim) => product * dim, 1);

function makeGraph({ inputs, build }: OperatorCase, first?: Dtype): GraphBuilder {
  const g = new GraphBuilder('case');
  const isFirst = (operand: Operand) => first !== undefined && (operand.dtype ?? 'float32') === 'float32';
  const values = inputs.map((one, i) => g.input(`x${i}`, isFirst(one) ? first! : (one.dtype ?? 'float32'), one.shape));
  build(g, values).forEach((value, i) => {
    g.output(`y${i}`, value);
  });
  return g;
}

async function compute(engine: Engine, one: OperatorCase) {
  const g = makeGraph(one);
  const program = await engine.compile(g);
  const upload = ({ dtype, shape, values }: Operand, seed: number) => {
    const at = (i: number) => values![i % values!.length]!;
    const length = countElements(shape);
    if (dtype === 'int64')
      return engine.upload(
        BigInt64Array.from({ length }, (_, i) => BigInt(at(i))),
        dtype,
        shape,
      );
    if (dtype === 'bool')
      return engine.upload(
        Uint8Array.from({ length }, (_, i) => at(i + seed)),
        dtype,
        shape,
      );
    const floats = Float32Array.from({ length }, (_, i) => 1.1 + 0.9 * Math.sin(1.7 * i + seed));
    return engine.upload(floats, 'float32', shape);
  };
  const inputs = Object.fromEntries(one.inputs.map((operand, i) => [`x${i}`, upload(operand, i)]));
  const outputs = Object.fromEntries(
    [...g.outputs].map(([name, { dtype, shape }]) => [
      name,
      engine.allocate(dtype as 'float32', shape as readonly number[]),
    ]),
  );
  await engine.run([{ kind: 'run', program, inputs, outputs }]);
  const results = await engine.downloadMany(Object.values(outputs));
  program.release();
  return results.map((values) => Array.from<number | bigint, number>(values, Number));
}

describe('what the table says of WebGPU is so', unless(chooseSoftwareAdapter()), () => {
  let gpu: Engine;
  let cpu: Engine;
  beforeAll(async () => {
    gpu = await openEngine({ device: 'webgpu', threads: 1 });
    cpu = await openEngine({ device: 'cpu', threads: 1 });
  });
  afterAll(async () => {
    await gpu.close();
    await cpu.close();
  });

  test('every operator that it lists has a case here', () => {
    const listed = Object.entries(WEBGPU_OPERATORS).flatMap(([name, support]) => ('reason' in support ? [] : [name]));
    assert.deepEqual(Object.keys(CASES).sort(), listed.sort());
  });

  test('every operator computes what the CPU computes', async () => {
    for (const [name, one] of Object.entries(CASES)) {
      const [got, want] = [await compute(gpu, one), await compute(cpu, one)];
      // Sine and cosine are right to three digits only.
      const absolute = name === 'Sin' || name === 'Cos' ? 1e-3 : 2e-5;
      want.forEach((values, i) => {
        expectClose(got[i]!, values, { absolute, relative: 1e-5, where: `${name}, output ${i}` });
      });
    }
  });

  test('every element type that it lists is compiled', async () => {
    for (const { also = [], ...one } of Object.values(CASES)) {
      for (const dtype of also) {
        const program = await gpu.compile(makeGraph(one, dtype));
        program.release();
      }
    }
  });
});
