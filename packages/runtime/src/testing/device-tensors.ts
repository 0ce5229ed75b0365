import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import type { TensorData, TensorDtype } from '@stillhouse/tensor-types';
import { expectClose } from '@stillhouse/testing';
import { test } from 'vitest';
import type { DeviceTensor, Engine, Program } from '../index.ts';

/** A model of test/runtime. */
export const loadModel = (engine: Engine, name: string): Promise<Program> =>
  engine.compileModel(readFileSync(new URL(`../../../../test/runtime/${name}.onnx`, import.meta.url)), { name });

export const uploadFloats = (engine: Engine, values: readonly number[], shape: readonly number[] = [values.length]) =>
  engine.upload(Float32Array.from(values), 'float32', shape);

export const readTensor = async (engine: Engine, tensor: DeviceTensor) =>
  Array.from<number | bigint>(await engine.download(tensor));

/** Two matrices [size, size] and their product, summed in float64. */
export function makeProduct() {
  const size = 40;
  const a = Float32Array.from({ length: size * size }, (_, i) => Math.sin(i));
  const b = Float32Array.from({ length: size * size }, (_, i) => Math.cos(i * 0.7));
  const want = Array.from({ length: size * size }, (_, at) => {
    const [row, column] = [Math.floor(at / size), at % size];
    let sum = 0;
    for (let k = 0; k < size; k++) sum += a[row * size + k]! * b[k * size + column]!;
    return sum;
  });
  return { size, a, b, want };
}

const SAMPLES: Readonly<Partial<Record<TensorDtype, TensorData>>> = {
  float32: new Float32Array([1.5, -2, Number.NaN, 3e-39, Number.POSITIVE_INFINITY]),
  int64: new BigInt64Array([1n, -2n, 2n ** 40n]),
  int32: new Int32Array([-1, 2 ** 30, 5]),
  float16: new Uint16Array([0x3c00, 0xfc00, 1]),
  uint8: new Uint8Array([1, 2, 255, 4, 5]),
  bool: new Uint8Array([1, 0, 1]),
};

/** What tensors do on every device that has memory of its own. @param open gives the engine that the tests share */
export function testDeviceTensors(open: () => Engine): void {
  test('tensors of every type come back as they went', () => expectEveryType(open()));
  test('a product is exact to float32, and sums add up in place', () => expectProducts(open()));
  test('a view aliases its tensor, wherever it lies', () => expectViewsToAlias(open()));
}

async function expectEveryType(engine: Engine): Promise<void> {
  for (const [dtype, values] of Object.entries(SAMPLES) as [TensorDtype, TensorData][]) {
    const tensor = engine.upload(values, dtype, [values.length]);
    assert.deepEqual(await engine.download(tensor), values, dtype);
    const copied = engine.allocate(dtype, [values.length]);
    assert.deepEqual((await readTensor(engine, copied)).map(Number), Array(values.length).fill(0), dtype);
    engine.copy(tensor, copied);
    engine.fill(tensor, 0);
    assert.deepEqual(await engine.download(copied), values, `${dtype}, copied`);
  }
  assert.deepEqual(await readTensor(engine, engine.allocate('float32', [0, 3])), []);
  for (const [dtype, value] of [
    ['float32', Math.fround(0.1)],
    ['int64', -7],
    ['int32', 2 ** 31 - 1],
  ] as const) {
    const filled = engine.allocate(dtype, [1000]);
    engine.fill(filled, value);
    assert.deepEqual((await readTensor(engine, filled)).map(Number), Array(1000).fill(value), dtype);
  }
}

async function expectProducts(engine: Engine): Promise<void> {
  const matmul = await loadModel(engine, 'matmul');
  const { size, a, b, want } = makeProduct();
  const [left, right] = [a, b].map((data) => engine.upload(data, 'float32', [size, size])) as [
    DeviceTensor,
    DeviceTensor,
  ];
  const c = engine.allocate('float32', [size, size]);
  await engine.run([{ kind: 'run', program: matmul, inputs: { a: left, b: right }, outputs: { c } }]);
  expectClose((await engine.download(c)) as Float32Array, want, { absolute: 1e-4, where: 'a · b' });
  const gemm = await loadModel(engine, 'gemm-accumulate');
  const eye = uploadFloats(engine, [1, 0, 0, 1], [2, 2]);
  const sum = engine.allocate('float32', [2, 2]);
  const inputs = { a: uploadFloats(engine, [1, 2, 3, 4], [2, 2]), b: eye, c: sum };
  const call = { kind: 'run', program: gemm, inputs, outputs: { y: sum } } as const;
  await engine.run([call, call, call]);
  assert.deepEqual(await readTensor(engine, sum), [3, 6, 9, 12]);
}

async function expectViewsToAlias(engine: Engine): Promise<void> {
  const increment = await loadModel(engine, 'increment');
  const whole = uploadFloats(engine, [0, 1, 2, 3, 4, 5, 6]);
  const step = uploadFloats(engine, [10]);
  const want = [0, 1, 2, 3, 4, 5, 6];
  for (const [offset, count] of [
    [0, 2],
    [1, 4],
    [5, 2],
    [0, 7],
  ] as const) {
    const view = engine.view(whole, { offset, shape: [count] });
    await engine.run([{ kind: 'run', program: increment, inputs: { x: view, step }, outputs: { y: view } }]);
    for (let i = 0; i < count; i++) want[offset + i]! += 10;
    assert.deepEqual(await readTensor(engine, whole), want, `from ${offset}`);
    assert.deepEqual(await readTensor(engine, view), want.slice(offset, offset + count));
    engine.free(view);
  }
  const middle = engine.view(whole, { offset: 1, shape: [4] });
  const inner = engine.view(middle, { offset: 1, shape: [2] });
  engine.fill(inner, -1);
  engine.write(engine.view(whole, { offset: 6, shape: [1] }), new Float32Array([9]));
  engine.copy(inner, engine.view(whole, { offset: 0, shape: [2] }));
  assert.deepEqual(await readTensor(engine, whole), [-1, -1, -1, -1, want[4], want[5], 9]);
  const grid = engine.view(whole, { offset: 0, shape: [7, 1] });
  engine.fill(grid, 2);
  assert.deepEqual(await readTensor(engine, whole), Array(7).fill(2));
}
