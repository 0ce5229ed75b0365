import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { TensorData, TensorDtype } from '@stillhouse/tensor-types';
import { makeTemporaryFolder } from '@stillhouse/testing';
import { afterAll, beforeAll, test } from 'vitest';
import { type DeviceTensor, type Engine, openEngine, type Program } from './index.ts';

let engine: Engine;
beforeAll(async () => {
  engine = await openEngine({ device: 'cpu', threads: 1 });
});
afterAll(() => engine.close());

function load(name: string, on = engine): Promise<Program> {
  return on.compileModel(readFileSync(new URL(`../../../test/runtime/${name}.onnx`, import.meta.url)), { name });
}

function upload(values: readonly number[], shape: readonly number[] = [values.length]): DeviceTensor {
  return engine.upload(Float32Array.from(values), 'float32', shape);
}

async function read(tensor: DeviceTensor): Promise<(number | bigint)[]> {
  return Array.from<number | bigint>(await engine.download(tensor));
}

test('a program writes its result into the given tensor, at any size of a symbolic dimension', async () => {
  const matmul = await load('matmul');
  assert.deepEqual(matmul.inputNames, ['a', 'b']);
  assert.deepEqual(matmul.outputs, [{ name: 'c', dtype: 'float32', shape: ['M', 'N'] }]);
  const b = upload([1, 2, 3, 4], [2, 2]);
  for (const rows of [1, 3, 2]) {
    const a = upload(
      Array.from({ length: rows * 2 }, (_, index) => index),
      [rows, 2],
    );
    const c = engine.allocate('float32', [rows, 2]);
    await engine.run([{ kind: 'run', program: matmul, inputs: { a, b }, outputs: { c } }]);
    const row = (i: number) => [2 * i * 1 + (2 * i + 1) * 3, 2 * i * 2 + (2 * i + 1) * 4];
    assert.deepEqual(await read(c), Array.from({ length: rows }, (_, i) => row(i)).flat());
  }
});

test('Gemm accumulates in place', async () => {
  const gemm = await load('gemm-accumulate');
  const a = upload([1, 2, 3, 4], [2, 2]);
  const b = upload([1, 0, 0, 1], [2, 2]);
  const sum = engine.allocate('float32', [2, 2]);
  const call = { kind: 'run', program: gemm, inputs: { a, b, c: sum }, outputs: { y: sum } } as const;
  await engine.run([call, call, call]);
  assert.deepEqual(await read(sum), [3, 6, 9, 12]);
});

test('commands are executed in the order in which they were asked for, without awaiting', async () => {
  const increment = await load('increment');
  const step = upload([1]);
  const x = engine.allocate('float32', [3]);
  const add = { kind: 'run', program: increment, inputs: { x, step }, outputs: { y: x } } as const;
  const seen: Promise<(number | bigint)[]>[] = [read(x)];
  void engine.run([add]);
  seen.push(read(x));
  engine.fill(x, 10);
  seen.push(read(x));
  void engine.run([add, { kind: 'fill', tensor: step, value: 5 }, add]);
  seen.push(read(x));
  engine.write(x, new Float32Array([1, 2, 3]));
  void engine.run([add]);
  seen.push(read(x));
  assert.deepEqual(await Promise.all(seen), [
    [0, 0, 0],
    [1, 1, 1],
    [10, 10, 10],
    [16, 16, 16],
    [6, 7, 8],
  ]);
});

test('a view aliases its tensor, also as input and output of programs', async () => {
  const increment = await load('increment');
  const whole = upload([0, 1, 2, 3, 4, 5], [2, 3]);
  const middle = engine.view(whole, { offset: 1, shape: [4] });
  const last = engine.view(middle, { offset: 3, shape: [1] });
  const step = upload([10]);
  await engine.run([
    { kind: 'run', program: increment, inputs: { x: middle, step }, outputs: { y: middle } },
    { kind: 'fill', tensor: last, value: -1 },
  ]);
  assert.deepEqual(await read(whole), [0, 11, 12, 13, -1, 5]);
  assert.deepEqual(await read(middle), [11, 12, 13, -1]);
  engine.free(middle);
  assert.deepEqual(await read(whole), [0, 11, 12, 13, -1, 5]);
  assert.deepEqual(await read(last), [-1], 'a view ends with the tensor that owns the memory, not with another view');
});

test('copy goes between tensors of equal size, by command and inside a sequence', async () => {
  const from = upload([1, 2, 3, 4], [2, 2]);
  const to = engine.allocate('float32', [4]);
  const third = engine.allocate('float32', [4, 1]);
  engine.copy(from, to);
  await engine.run([{ kind: 'copy', from: to, to: third }]);
  assert.deepEqual(await read(third), [1, 2, 3, 4]);
});

test('upload copies, unless the memory is handed over', async () => {
  const data = new Float32Array([1, 2]);
  const copied = engine.upload(data, 'float32', [2]);
  data[0] = 9;
  assert.deepEqual(await read(copied), [1, 2]);
  const moved = engine.upload(data.subarray(1), 'float32', [1], { transfer: true });
  assert.equal(data.length, 0, 'the buffer is detached');
  assert.deepEqual(await read(moved), [2]);
  const shared = new Float32Array(new SharedArrayBuffer(8)).fill(4);
  const increment = await load('increment');
  const x = engine.upload(shared, 'float32', [2], { transfer: true });
  await engine.run([{ kind: 'run', program: increment, inputs: { x, step: moved }, outputs: { y: x } }]);
  assert.deepEqual(await read(x), [6, 6]);
  assert.deepEqual([...shared], [4, 4]);
  const pooled = Buffer.from([7, 8]);
  assert.deepEqual(await read(engine.upload(pooled, 'uint8', [2])), [7, 8]);
});

const elementwise: {
  program: string;
  inputs: Record<string, [TensorDtype, TensorData, number[]]>;
  output: [name: string, dtype: TensorDtype, shape: number[]];
  expected: TensorData;
}[] = [
  {
    program: 'multiply-float64',
    inputs: { a: ['float64', new Float64Array([1 + 2 ** -40]), [1]], b: ['float64', new Float64Array([3]), [1]] },
    output: ['c', 'float64', [1]],
    expected: new Float64Array([3 + 3 * 2 ** -40]),
  },
  {
    program: 'multiply-int64',
    inputs: { a: ['int64', new BigInt64Array([2n ** 40n]), [1]], b: ['int64', new BigInt64Array([-3n]), [1]] },
    output: ['c', 'int64', [1]],
    expected: new BigInt64Array([-3n * 2n ** 40n]),
  },
  {
    program: 'greater',
    inputs: { a: ['float32', new Float32Array([1, 5]), [2]], b: ['float32', new Float32Array([2, 2]), [2]] },
    output: ['c', 'bool', [2]],
    expected: new Uint8Array([0, 1]),
  },
  {
    program: 'not',
    inputs: { x: ['bool', new Uint8Array([0, 1, 1]), [3]] },
    output: ['y', 'bool', [3]],
    expected: new Uint8Array([1, 0, 0]),
  },
  {
    program: 'integer-matmul',
    inputs: {
      a: ['uint8', new Uint8Array([200, 1, 2, 3]), [1, 4]],
      b: ['int8', new Int8Array([-100, 1, 1, 1]), [4, 1]],
    },
    output: ['c', 'int32', [1, 1]],
    expected: new Int32Array([-19994]),
  },
  {
    program: 'cast-half',
    inputs: { x: ['float16', new Uint16Array([0x3c00, 0xc100]), [2]] },
    output: ['y', 'float32', [2]],
    expected: new Float32Array([1, -2.5]),
  },
  {
    program: 'pass-uint16',
    inputs: { x: ['uint16', new Uint16Array([65535, 7]), [2]] },
    output: ['y', 'uint16', [2]],
    expected: new Uint16Array([65535, 7]),
  },
  {
    program: 'reshape-rows',
    inputs: { x: ['float32', new Float32Array(12).fill(2), [2, 3, 2]] },
    output: ['y', 'float32', [6, 2]],
    expected: new Float32Array(12).fill(2),
  },
  {
    program: 'pass-uint16',
    inputs: { x: ['uint16', new Uint16Array(0), [0]] },
    output: ['y', 'uint16', [0]],
    expected: new Uint16Array(0),
  },
];
for (const { program: name, inputs, output, expected } of elementwise) {
  test(`${name} gives ${expected.constructor.name} of ${expected.length}`, async () => {
    const program = await load(name);
    const given = Object.entries(inputs).map(([key, [dtype, data, shape]]) => [key, engine.upload(data, dtype, shape)]);
    const result = engine.allocate(output[1], output[2]);
    await engine.run([{ kind: 'run', program, inputs: Object.fromEntries(given), outputs: { [output[0]]: result } }]);
    assert.deepEqual(await engine.download(result), expected);
  });
}

test('fill sets int64 and bool tensors too', async () => {
  const ids = engine.allocate('int64', [2]);
  const mask = engine.allocate('bool', [2]);
  engine.fill(ids, -7);
  engine.fill(mask, 1);
  assert.deepEqual(await engine.downloadMany([ids, mask]), [new BigInt64Array([-7n, -7n]), new Uint8Array([1, 1])]);
});

test('freed memory goes back to the operating system', async () => {
  const sizeBytes = 192 * 2 ** 20;
  const before = await engine.memory();
  const tensor = engine.allocate('float32', [sizeBytes / 4]);
  engine.view(tensor, { offset: 0, shape: [4] });
  engine.fill(tensor, 1);
  const during = await engine.memory();
  assert.equal(during.allocatedBytes - before.allocatedBytes, sizeBytes);
  assert.ok(during.residentBytes - before.residentBytes > sizeBytes * 0.8);
  engine.free(tensor);
  const afterwards = await engine.memory();
  assert.equal(afterwards.allocatedBytes, before.allocatedBytes);
  assert.ok(during.residentBytes - afterwards.residentBytes > sizeBytes * 0.8);
  assert.ok(afterwards.peakRssBytes >= during.residentBytes * 0.99);
});

test('engines stand side by side', async () => {
  const second = await openEngine();
  try {
    assert.equal(second.device, 'cpu');
    assert.match(second.deviceReason, /^cpu, chosen: /);
    const program = await load('increment', second);
    const x = second.allocate('float32', [1]);
    const step = second.upload(new Float32Array([2]), 'float32', [1]);
    const mine = upload([1]);
    await second.run([{ kind: 'run', program, inputs: { x, step }, outputs: { y: x } }]);
    assert.deepEqual([...(await second.download(x))], [2]);
    await assert.rejects(second.download(mine), { code: 'TENSOR_FREED' });
  } finally {
    await second.close();
  }
  assert.deepEqual(await read(upload([3])), [3]);
});

test('an engine with a folder for it leaves a profile of each program', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const profiled = await openEngine({ threads: 1, profileFolder: folder });
  const matmul = await load('matmul', profiled);
  const [a, b, c] = [1, 2, 3].map(() => profiled.allocate('float32', [2, 2])) as [
    DeviceTensor,
    DeviceTensor,
    DeviceTensor,
  ];
  await profiled.run([{ kind: 'run', program: matmul, inputs: { a, b }, outputs: { c } }]);
  await profiled.close();
  const [file, ...others] = readdirSync(folder);
  assert.deepEqual(others, []);
  const events = JSON.parse(readFileSync(join(folder, file!), 'utf8')) as readonly { args?: { op_name?: string } }[];
  assert.ok(events.some(({ args }) => args?.op_name === 'MatMul'));
});

test('a run writes its outputs where they belong and makes no copies of them', async () => {
  const matmul = await load('matmul');
  const [rows, runs] = [4096, 6];
  const [a, b, c] = [
    [rows, 1],
    [1, rows],
    [rows, rows],
  ].map((shape) => engine.allocate('float32', shape)) as [DeviceTensor, DeviceTensor, DeviceTensor];
  engine.fill(a, 2);
  engine.fill(b, 3);
  const call = { kind: 'run', program: matmul, inputs: { a, b }, outputs: { c } } as const;
  await engine.run([call]);
  const before = process.resourceUsage().minorPageFault;
  await engine.run(Array.from({ length: runs }, () => call));
  // A copy of this size would be new memory, page by page.
  const pages = process.resourceUsage().minorPageFault - before;
  assert.ok(pages < (runs * c.sizeBytes) / 4096 / 4, `${pages} new pages`);
  assert.ok(((await engine.download(c)) as Float32Array).every((one) => one === 6));
});
