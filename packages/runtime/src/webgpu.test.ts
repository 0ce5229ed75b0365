import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { chooseSoftwareAdapter, expectClose, makeTemporaryFolder, runNode } from '@stillhouse/testing';
import { type DeviceTensor, type Engine, openEngine, type Program, type TensorDtype } from './index.ts';

const obstacle = chooseSoftwareAdapter();

const load = (engine: Engine, name: string): Promise<Program> =>
  engine.compile(readFileSync(new URL(`../../../test/runtime/${name}.onnx`, import.meta.url)), { name });

describe('tensors in buffers of a WebGPU device', { skip: obstacle }, () => {
  let engine: Engine;
  before(async () => {
    engine = await openEngine({ device: 'webgpu', threads: 1 });
  });
  after(() => engine.close());

  const upload = (values: readonly number[], shape: readonly number[] = [values.length]) =>
    engine.upload(Float32Array.from(values), 'float32', shape);
  const read = async (tensor: DeviceTensor) => Array.from<number | bigint>(await engine.download(tensor));

  test('the engine says what it is', () => {
    assert.equal(engine.device, 'webgpu');
    assert.match(engine.deviceReason, /^webgpu, as asked; tensors stay in its buffers/);
  });

  test('tensors of every type come back as they went', async () => {
    const data = {
      float32: new Float32Array([1.5, -2, Number.NaN, 3e-39, Number.POSITIVE_INFINITY]),
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
    const filled = engine.allocate('float32', [5]);
    engine.fill(filled, 0.1);
    assert.deepEqual(await read(filled), Array(5).fill(Math.fround(0.1)));
    const whole = engine.allocate('int64', [2]);
    engine.fill(whole, -7);
    assert.deepEqual(await read(whole), [-7n, -7n]);
  });

  test('what is written in place for the main thread reads its operands before it overwrites them', async () => {
    const matmul = await load(engine, 'matmul');
    const size = 40;
    const a = Float32Array.from({ length: size * size }, (_, i) => Math.sin(i));
    const b = Float32Array.from({ length: size * size }, (_, i) => Math.cos(i * 0.7));
    const want = Array.from({ length: size * size }, (_, at) => {
      const [row, column] = [Math.floor(at / size), at % size];
      let sum = 0;
      for (let k = 0; k < size; k++) sum += a[row * size + k]! * b[k * size + column]!;
      return sum;
    });
    const inPlace = engine.upload(a, 'float32', [size, size]);
    const other = engine.upload(b, 'float32', [size, size]);
    await engine.run([{ kind: 'run', program: matmul, inputs: { a: inPlace, b: other }, outputs: { c: inPlace } }]);
    expectClose((await engine.download(inPlace)) as Float32Array, want, { absolute: 1e-4, where: 'a · b into a' });
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
    const places = [
      { offset: 0, shape: [2] },
      { offset: 1, shape: [4] },
      { offset: 5, shape: [2] },
      { offset: 0, shape: [7] },
    ];
    const want = [0, 1, 2, 3, 4, 5, 6];
    for (const place of places) {
      const view = engine.view(whole, place);
      await engine.run([{ kind: 'run', program: increment, inputs: { x: view, step }, outputs: { y: view } }]);
      for (let i = 0; i < place.shape[0]!; i++) want[place.offset + i]! += 10;
      assert.deepEqual(await read(whole), want, `from ${place.offset}`);
      assert.deepEqual(await read(view), want.slice(place.offset, place.offset + place.shape[0]!));
      engine.free(view);
    }
    const middle = engine.view(whole, { offset: 1, shape: [4] });
    const inner = engine.view(middle, { offset: 1, shape: [2] });
    engine.fill(inner, -1);
    engine.write(engine.view(whole, { offset: 6, shape: [1] }), new Float32Array([9]));
    engine.copy(inner, engine.view(whole, { offset: 0, shape: [2] }));
    assert.deepEqual(await read(whole), [-1, -1, -1, -1, want[4], want[5], 9]);
    const grid = engine.view(whole, { offset: 0, shape: [7, 1] });
    engine.fill(grid, 2);
    assert.deepEqual(await read(whole), Array(7).fill(2));
  });

  test('a view that cuts a 32-bit word is refused', async () => {
    const bytes = engine.upload(new Uint8Array(8), 'uint8', [8]);
    assert.deepEqual(await read(engine.view(bytes, { offset: 4, shape: [4] })), [0, 0, 0, 0]);
    const view = engine.view(bytes, { offset: 3, shape: [2] });
    await assert.rejects(engine.download(view), { code: 'TENSOR_VIEW_UNALIGNED' });
  });

  test('a program whose operators would run on the CPU is refused', async () => {
    for (const name of ['multiply-float64', 'multiply-int64', 'integer-matmul']) {
      await assert.rejects(load(engine, name), { code: 'PROGRAM_UNSUPPORTED_BY_DEVICE' }, name);
    }
  });

  test('memory that is freed is used again', async () => {
    const before = (await engine.memory()).allocatedBytes;
    for (let i = 0; i < 20; i++) engine.free(engine.upload(new Float32Array(1 << 20).fill(i), 'float32', [1 << 20]));
    const { allocatedBytes, residentBytes } = await engine.memory();
    assert.equal(allocatedBytes, before);
    assert.ok(residentBytes < 2 ** 30);
  });

  test('a tensor that the device has no buffer for is told as such, and the engine goes on', async () => {
    const increment = await load(engine, 'increment');
    const [x, y] = [1, 2].map(() => engine.allocate('float32', [2 ** 31])) as [DeviceTensor, DeviceTensor];
    const call = { kind: 'run', program: increment, inputs: { x, step: upload([1]) }, outputs: { y } } as const;
    await assert.rejects(engine.run([call]), { code: 'OUT_OF_MEMORY' });
    await assert.rejects(engine.download(x), { code: 'OUT_OF_MEMORY' });
    engine.free(x);
    engine.free(y);
    assert.deepEqual(await read(upload([3])), [3]);
  });

  test('what a program made outlives it', async () => {
    const [increment, matmul] = [await load(engine, 'increment'), await load(engine, 'matmul')];
    const x = upload([1, 2]);
    const square = upload([1, 2, 3, 4], [2, 2]);
    await engine.run([
      { kind: 'run', program: increment, inputs: { x, step: upload([1]) }, outputs: { y: x } },
      { kind: 'run', program: matmul, inputs: { a: square, b: square }, outputs: { c: square } },
    ]);
    increment.release();
    matmul.release();
    assert.deepEqual(
      [await read(x), await read(square)],
      [
        [2, 3],
        [7, 10, 15, 22],
      ],
    );
    engine.free(x);
    engine.fill(square, 0);
    assert.deepEqual(await read(square), [0, 0, 0, 0]);
    const again = await load(engine, 'increment');
    const y = engine.allocate('float32', [1]);
    await engine.run([{ kind: 'run', program: again, inputs: { x: upload([1]), step: upload([1]) }, outputs: { y } }]);
    assert.deepEqual(await read(y), [2]);
  });

  for (const [when, ending, exit] of [
    ['with an engine left open', '', 0],
    ['in the middle of a run', 'engine.run(Array(1000).fill(call)); setTimeout(() => process.exit(3), 50);', 3],
  ] as const) {
    test(`a process ends cleanly ${when}`, async (t) => {
      const script = join(await makeTemporaryFolder(t), 'main.mts');
      const from = (path: string) => JSON.stringify(new URL(path, import.meta.url).href);
      writeFileSync(
        script,
        `import { readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
        import { chooseSoftwareAdapter } from ${from('../../testing/src/index.ts')};
        import { openEngine } from ${from('./index.ts')};
        chooseSoftwareAdapter();
        const engine = await openEngine({ device: 'webgpu', threads: 1 });
        const program = await engine.compile(readFileSync(new URL(${from('../../../test/runtime/matmul.onnx')})), { name: 'matmul' });
        const a = engine.upload(new Float32Array(1e4), 'float32', [100, 100]);
        const call = { kind: 'run', program, inputs: { a, b: a }, outputs: { c: engine.allocate('float32', [100, 100]) } };
        await engine.run([call]);
        console.log('ran');
        ${ending}`,
      );
      const { code, signal, stdout, stderr } = await runNode([script], { cwd: tmpdir(), timeoutMs: 60_000 });
      assert.deepEqual({ code, signal, stdout, stderr }, { code: exit, signal: null, stdout: 'ran\n', stderr: '' });
    });
  }

  test('engines stand side by side, and one that is closed takes none with it', async () => {
    const other = await openEngine({ device: 'webgpu', threads: 1 });
    const kept = upload([1, 2]);
    other.upload(new Float32Array([5]), 'float32', [1]);
    await other.close();
    assert.deepEqual(await read(kept), [1, 2]);
  });
});
