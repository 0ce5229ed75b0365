import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { expectClose, findCudaObstacle } from '@stillhouse/testing';
import { type DeviceTensor, type Engine, openEngine, type Program, type TensorDtype } from '../index.ts';

const load = (engine: Engine, name: string): Promise<Program> =>
  engine.compile(readFileSync(new URL(`../../../../test/runtime/${name}.onnx`, import.meta.url)), { name });

describe('tensors in the memory of a CUDA device', { skip: await findCudaObstacle() }, () => {
  let engine: Engine;
  before(async () => {
    engine = await openEngine({ device: 'cuda', threads: 1 });
  });
  after(() => engine.close());

  const upload = (values: readonly number[], shape: readonly number[] = [values.length]) =>
    engine.upload(Float32Array.from(values), 'float32', shape);
  const read = async (tensor: DeviceTensor) => Array.from<number | bigint>(await engine.download(tensor));

  test('tensors of every type come back as they went', async () => {
    const data = {
      float32: new Float32Array([1.5, -2, Number.NaN, 3e-39, Number.POSITIVE_INFINITY]),
      float64: new Float64Array([0.1, -1e300]),
      int64: new BigInt64Array([1n, -2n, 2n ** 40n]),
      int32: new Int32Array([-1, 2 ** 30, 5]),
      float16: new Uint16Array([0x3c00, 0xfc00, 1]),
      uint8: new Uint8Array([1, 2, 255, 4, 5]),
      bool: new Uint8Array([1, 0, 1]),
    } as const;
    for (const [dtype, values] of Object.entries(data)) {
      const tensor = engine.upload(values, dtype as TensorDtype, [values.length]);
      assert.deepEqual(await engine.download(tensor), values, dtype);
      const copied = engine.allocate(dtype as TensorDtype, [values.length]);
      assert.deepEqual(Array.from(await engine.download(copied), Number), Array(values.length).fill(0), dtype);
      engine.copy(tensor, copied);
      engine.fill(tensor, 0);
      assert.deepEqual(await engine.download(copied), values, `${dtype}, copied`);
    }
    assert.deepEqual(await read(engine.allocate('float32', [0, 3])), []);
    for (const [dtype, value] of [
      ['float64', 0.1],
      ['int64', -7],
      ['int32', 2 ** 31 - 1],
      ['uint16', 65_535],
    ] as const) {
      const filled = engine.allocate(dtype, [1000]);
      engine.fill(filled, value);
      assert.deepEqual(Array.from(await engine.download(filled), Number), Array(1000).fill(value), dtype);
    }
  });

  test('a product is exact to float32, and accumulates in place', async () => {
    const matmul = await load(engine, 'matmul');
    const size = 200;
    const a = Float32Array.from({ length: size * size }, (_, i) => Math.sin(i));
    const b = Float32Array.from({ length: size * size }, (_, i) => Math.cos(i * 0.7));
    const want = Array.from({ length: size * size }, (_, at) => {
      const [row, column] = [Math.floor(at / size), at % size];
      let sum = 0;
      for (let k = 0; k < size; k++) sum += a[row * size + k]! * b[k * size + column]!;
      return sum;
    });
    const [left, right] = [engine.upload(a, 'float32', [size, size]), engine.upload(b, 'float32', [size, size])];
    const c = engine.allocate('float32', [size, size]);
    await engine.run([{ kind: 'run', program: matmul, inputs: { a: left, b: right }, outputs: { c } }]);
    expectClose((await engine.download(c)) as Float32Array, want, { absolute: 2e-4, where: 'a · b' });
    const gemm = await load(engine, 'gemm-accumulate');
    const eye = upload([1, 0, 0, 1], [2, 2]);
    const sum = engine.allocate('float32', [2, 2]);
    const call = { kind: 'run', program: gemm, inputs: { a: upload([1, 2, 3, 4], [2, 2]), b: eye, c: sum } } as const;
    await engine.run([call, call, call].map((one) => ({ ...one, outputs: { y: sum } })));
    assert.deepEqual(await read(sum), [3, 6, 9, 12]);
  });

  test('a view aliases its tensor, wherever it lies', async () => {
    const increment = await load(engine, 'increment');
    const whole = upload([0, 1, 2, 3, 4, 5, 6], [7]);
    const step = upload([10]);
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
      assert.deepEqual(await read(whole), want, `from ${offset}`);
      engine.free(view);
    }
  });

  test('memory that is freed is used again, and what the device has no room for is told as such', async () => {
    const before = (await engine.memory()).device!;
    for (let i = 0; i < 20; i++) engine.free(engine.upload(new Float32Array(1 << 22).fill(i), 'float32', [1 << 22]));
    const { device } = await engine.memory();
    assert.ok(device!.usedBytes - before.usedBytes <= 64 * 2 ** 20, `${device!.usedBytes - before.usedBytes} bytes`);
    const tooMany = Math.ceil(before.totalBytes / 4) + 1;
    const x = engine.allocate('float32', [tooMany]);
    await assert.rejects(engine.download(upload([1])), { code: 'OUT_OF_MEMORY' });
    engine.free(x);
    assert.deepEqual(await read(upload([3])), [3]);
  });

  test('engines stand side by side, and one that is closed takes none with it', async () => {
    const other = await openEngine({ device: 'cuda', threads: 1, precision: 'bfloat16' });
    const kept = upload([1, 2]);
    other.upload(new Float32Array([5]), 'float32', [1]);
    await other.close();
    assert.deepEqual(await read(kept), [1, 2]);
  });
});
