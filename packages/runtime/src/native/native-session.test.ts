import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { setImmediate } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { test } from 'vitest';
import type { WorkerOptions } from '../protocol.ts';
import { openHostDevice } from './host-device.ts';
import { createNativeMemory } from './native-memory.ts';
import { createNativeSessions } from './native-session.ts';
import { findLibraryFolder, loadOnnxRuntime } from './onnxruntime-library.ts';

const OPTIONS: WorkerOptions = { device: 'cpu', threads: 1, precision: 'float32', enableMemoryArena: true };

const readModel = (name: string) => readFileSync(new URL(`../../../../test/runtime/${name}.onnx`, import.meta.url));

function openOnCpu() {
  const sessions = createNativeSessions(loadOnnxRuntime(), { kind: 'cpu' });
  const device = openHostDevice();
  return { sessions, device, memory: createNativeMemory(device, sessions, (work) => work()) };
}

test('a model is loaded with the names, types and sizes of what goes in and out', () => {
  const { sessions } = openOnCpu();
  const { session, inputs, outputs } = sessions.load(readModel('matmul'), OPTIONS);
  assert.deepEqual(inputs, [
    { name: 'a', dtype: 'float32', shape: ['M', 'K'] },
    { name: 'b', dtype: 'float32', shape: ['K', 'N'] },
  ]);
  assert.deepEqual(outputs, [{ name: 'c', dtype: 'float32', shape: ['M', 'N'] }]);
  sessions.release(session);
});

test('programs read and write tensors where they lie, views too', async () => {
  const { sessions, memory, device } = openOnCpu();
  const { session } = sessions.load(readModel('matmul'), OPTIONS);
  await memory.upload(1, 'float32', [3, 2], Float32Array.of(9, 9, 1, 2, 3, 4));
  await memory.view(2, 1, 2, [2, 2]);
  await memory.allocate(3, 'float32', [2, 4]);
  await memory.view(4, 3, 4, [2, 2]);
  const run = { session, shapes: [], outputs: [['c', 4]] } as const;
  for (const left of [2, 4]) {
    await memory.run({ ...run, inputs: ['a', 'b'].map((name) => [name, name === 'a' ? left : 2] as const) });
  }
  assert.deepEqual(await memory.download(3), Float32Array.of(0, 0, 0, 0, 37, 54, 81, 118), '[[1, 2], [3, 4]]³');
  await memory.close();
  sessions.release(session);
  device.close();
});

test('tensors of every type are filled, copied and come back', async () => {
  const { memory, device } = openOnCpu();
  const cases = {
    float32: [0.1, Float32Array.of(0.1, 0.1, 0.1)],
    float64: [0.1, Float64Array.of(0.1, 0.1, 0.1)],
    int64: [-7, BigInt64Array.of(-7n, -7n, -7n)],
    int32: [-7, Int32Array.of(-7, -7, -7)],
    int8: [-7, Int8Array.of(-7, -7, -7)],
    uint8: [200, Uint8Array.of(200, 200, 200)],
    uint16: [60_000, Uint16Array.of(60_000, 60_000, 60_000)],
    float16: [0x3c00, Uint16Array.of(0x3c00, 0x3c00, 0x3c00)],
    bool: [1, Uint8Array.of(1, 1, 1)],
  } as const;
  let handle = 0;
  for (const [dtype, [value, want]] of Object.entries(cases)) {
    const [a, b, view] = [++handle, ++handle, ++handle];
    await memory.allocate(a, dtype as keyof typeof cases, [3]);
    assert.deepEqual(Array.from(await memory.download(a), Number), [0, 0, 0], dtype);
    await memory.fill(a, value);
    await memory.allocate(b, dtype as keyof typeof cases, [3]);
    await memory.copy(a, b);
    assert.deepEqual(await memory.download(b), want, dtype);
    await memory.view(view, b, 1, [1]);
    await memory.fill(view, 0);
    assert.deepEqual(Array.from(await memory.download(b), Number), [want[0], 0, want[2]].map(Number), dtype);
  }
  await memory.allocate(++handle, 'float32', [0, 4]);
  assert.deepEqual(await memory.download(handle), new Float32Array(0));
  await memory.close();
  device.close();
});

test('what ONNX Runtime refuses is told in its words, and the next call goes well', async () => {
  const { sessions, memory, device } = openOnCpu();
  assert.throws(() => sessions.load(new Uint8Array([1, 2, 3]), OPTIONS), /Protobuf|INVALID|ModelProto/i);
  const { session } = sessions.load(readModel('matmul'), OPTIONS);
  await memory.upload(1, 'float32', [2, 2], Float32Array.of(1, 2, 3, 4));
  await memory.upload(2, 'float32', [3, 2], new Float32Array(6));
  const run = { session, shapes: [] } as const;
  const bind = (a: number, b: number) =>
    [
      ['a', a],
      ['b', b],
    ] as const;
  await assert.rejects(memory.run({ ...run, inputs: bind(1, 2), outputs: [['c', 1]] }), /MatMul|dimension/i);
  await memory.upload(3, 'float32', [2, 2], new Float32Array(4));
  await memory.run({ ...run, inputs: bind(1, 1), outputs: [['c', 3]] });
  assert.deepEqual(await memory.download(3), Float32Array.of(7, 10, 15, 22));
  await memory.close();
  device.close();
});

test('the library stays when nothing in JavaScript holds it', async () => {
  const ort = loadOnnxRuntime();
  setFlagsFromString('--expose-gc');
  const collectGarbage = runInNewContext('gc') as () => void;
  for (let i = 0; i < 3; i++) {
    collectGarbage();
    await setImmediate();
  }
  const sessions = createNativeSessions(ort, { kind: 'cpu' });
  const { session, inputs } = sessions.load(readModel('matmul'), OPTIONS);
  assert.equal(inputs.length, 2);
  sessions.release(session);
});

test('a folder without the library is named', () => {
  assert.throws(() => loadOnnxRuntime('/nowhere'), /there is no library of ONNX Runtime in \/nowhere/);
  assert.equal(findLibraryFolder({ STILLHOUSE_ONNXRUNTIME: '/opt/onnxruntime' }), '/opt/onnxruntime');
  assert.match(findLibraryFolder({}), /onnxruntime-node/);
});
