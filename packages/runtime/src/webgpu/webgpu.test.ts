import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { chooseSoftwareAdapter, expectClose, makeTemporaryFolder, runNode, unless } from '@stillhouse/testing';
import { afterAll, beforeAll, describe, test } from 'vitest';
import { type DeviceTensor, type Engine, openEngine } from '../index.ts';
import { loadModel, makeProduct, readTensor, testDeviceTensors, uploadFloats } from '../testing/device-tensors.ts';

const obstacle = chooseSoftwareAdapter();

describe('tensors in buffers of a WebGPU device', unless(obstacle), () => {
  let engine: Engine;
  beforeAll(async () => {
    engine = await openEngine({ device: 'webgpu', threads: 1 });
  });
  afterAll(() => engine.close());

  const upload = (values: readonly number[], shape?: readonly number[]) => uploadFloats(engine, values, shape);
  const read = (tensor: DeviceTensor) => readTensor(engine, tensor);

  test('the engine says what it is', () => {
    assert.equal(engine.device, 'webgpu');
    assert.match(engine.deviceReason, /^webgpu, as asked; tensors stay in its buffers/);
  });

  testDeviceTensors(() => engine);

  test('what is written in place for the main thread reads its operands before it overwrites them', async () => {
    const matmul = await loadModel(engine, 'matmul');
    const { size, a, b, want } = makeProduct();
    const inPlace = engine.upload(a, 'float32', [size, size]);
    const other = engine.upload(b, 'float32', [size, size]);
    await engine.run([{ kind: 'run', program: matmul, inputs: { a: inPlace, b: other }, outputs: { c: inPlace } }]);
    expectClose((await engine.download(inPlace)) as Float32Array, want, { absolute: 1e-4, where: 'a · b into a' });
  });

  test('a view that cuts a 32-bit word is refused', async () => {
    const bytes = engine.upload(new Uint8Array(8), 'uint8', [8]);
    assert.deepEqual(await read(engine.view(bytes, { offset: 4, shape: [4] })), [0, 0, 0, 0]);
    const view = engine.view(bytes, { offset: 3, shape: [2] });
    await assert.rejects(engine.download(view), { code: 'TENSOR_VIEW_UNALIGNED' });
  });

  test('a program whose operators would run on the CPU is refused', async () => {
    for (const name of ['multiply-float64', 'multiply-int64', 'integer-matmul']) {
      await assert.rejects(loadModel(engine, name), { code: 'PROGRAM_UNSUPPORTED_BY_DEVICE' }, name);
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
    const increment = await loadModel(engine, 'increment');
    const [x, y] = [1, 2].map(() => engine.allocate('float32', [2 ** 31])) as [DeviceTensor, DeviceTensor];
    const call = { kind: 'run', program: increment, inputs: { x, step: upload([1]) }, outputs: { y } } as const;
    await assert.rejects(engine.run([call]), { code: 'OUT_OF_MEMORY' });
    await assert.rejects(engine.download(x), { code: 'OUT_OF_MEMORY' });
    engine.free(x);
    engine.free(y);
    assert.deepEqual(await read(upload([3])), [3]);
  });

  test('what a program made outlives it', async () => {
    const [increment, matmul] = [await loadModel(engine, 'increment'), await loadModel(engine, 'matmul')];
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
    const again = await loadModel(engine, 'increment');
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
        import { chooseSoftwareAdapter } from ${from('../../../testing/src/index.ts')};
        import { openEngine } from ${from('../index.ts')};
        chooseSoftwareAdapter();
        const engine = await openEngine({ device: 'webgpu', threads: 1 });
        const model = readFileSync(new URL(${from('../../../../test/runtime/matmul.onnx')}));
        const program = await engine.compileModel(model, { name: 'matmul' });
        const a = engine.upload(new Float32Array(1e4), 'float32', [100, 100]);
        const c = engine.allocate('float32', [100, 100]);
        await engine.run([{ kind: 'run', program, inputs: { a, b: a }, outputs: { c } }]);
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
