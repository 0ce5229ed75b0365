import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { setTimeout } from 'node:timers/promises';
import { isStillhouseError } from '@stillhouse/errors';
import type { ProductPrecision } from '@stillhouse/onnx-graph';
import type { TensorDtype } from '@stillhouse/tensor-types';
import { afterAll, beforeAll, test } from 'vitest';
import { createEngine } from './engine.ts';
import { type DeviceName, type DeviceTensor, type Engine, openEngine, type Program } from './index.ts';
import type { WorkerCommand } from './protocol.ts';
import { startWorker } from './worker-link.ts';

let engine: Engine;
let matmul: Program;
beforeAll(async () => {
  engine = await openEngine({ threads: 1 });
  matmul = await load('matmul');
});
afterAll(() => engine.close());

function load(name: string, on = engine): Promise<Program> {
  return on.compileModel(readFileSync(new URL(`../../../test/runtime/${name}.onnx`, import.meta.url)), { name });
}

function zeros(shape: readonly number[], dtype: TensorDtype = 'float32'): DeviceTensor {
  return engine.allocate(dtype, shape);
}

function run(program: Program, inputs: Record<string, DeviceTensor>, outputs: Record<string, DeviceTensor>) {
  return engine.run([{ kind: 'run', program, inputs, outputs }]);
}

/** The code, and every piece of text that the message must show. */
function failsWith(code: string, ...shown: string[]) {
  return (error: unknown) => {
    assert.ok(isStillhouseError(error, code), `expected ${code}, got ${error}`);
    for (const text of shown) assert.ok(error.message.includes(text), `"${error.message}" does not say "${text}"`);
    return true;
  };
}

test('an input or output that is missing or unknown', async () => {
  const [a, b, c] = [zeros([2, 2]), zeros([2, 2]), zeros([2, 2])];
  await assert.rejects(run(matmul, { a }, { c }), failsWith('PROGRAM_INPUT_MISSING', 'matmul', 'input b', 'a, b'));
  await assert.rejects(run(matmul, { a, b, x: c }, { c }), failsWith('PROGRAM_INPUT_UNKNOWN', 'matmul', 'input x'));
  await assert.rejects(run(matmul, { a, b }, {}), failsWith('PROGRAM_OUTPUT_MISSING', 'matmul', 'output c'));
  await assert.rejects(run(matmul, { a, b }, { c, d: c }), failsWith('PROGRAM_OUTPUT_UNKNOWN', 'matmul', 'output d'));
});

test('a tensor of another dtype', async () => {
  const [a, b, c] = [zeros([2, 2]), zeros([2, 2], 'float64'), zeros([2, 2])];
  await assert.rejects(
    run(matmul, { a, b }, { c }),
    failsWith('PROGRAM_DTYPE_MISMATCH', 'program matmul, input b', 'expected float32', 'got float64'),
  );
});

test('a shape that differs in rank, in a number, or from what the same symbol was before', async () => {
  const [a, b, c] = [zeros([2, 3]), zeros([3, 4]), zeros([2, 4])];
  await assert.rejects(
    run(matmul, { a: zeros([6]), b }, { c }),
    failsWith('PROGRAM_SHAPE_MISMATCH', 'input a', 'expected [M, K]', 'got [6]'),
  );
  await assert.rejects(
    run(matmul, { a, b: zeros([2, 4]) }, { c }),
    failsWith('PROGRAM_SHAPE_MISMATCH', 'input b', 'input a says', 'K = 3', 'got [2, 4]'),
  );
  await assert.rejects(
    run(matmul, { a, b }, { c: zeros([4, 2]) }),
    failsWith('PROGRAM_SHAPE_MISMATCH', 'output c', 'M = 2', 'got [4, 2]'),
  );
  const integer = await load('integer-matmul');
  await assert.rejects(
    run(integer, { a: zeros([1, 3], 'uint8'), b: zeros([4, 1], 'int8') }, { c: zeros([1, 1], 'int32') }),
    failsWith('PROGRAM_SHAPE_MISMATCH', 'input a', 'expected [M, 4]', 'got [1, 3]'),
  );
  const reshape = await load('reshape-rows');
  await assert.rejects(
    run(reshape, { x: zeros([2, 3, 2]) }, { y: zeros([5, 2]) }),
    failsWith('PROGRAM_SHAPE_MISMATCH', 'output y', 'B*T = 6', 'got [5, 2]'),
  );
});

test('nothing of a sequence runs when one of its calls is wrong', async () => {
  const x = zeros([1]);
  const bad = { kind: 'run', program: matmul, inputs: {}, outputs: {} } as const;
  await assert.rejects(
    engine.run([{ kind: 'fill', tensor: x, value: 1 }, bad]),
    failsWith('PROGRAM_INPUT_MISSING', 'matmul'),
  );
  assert.deepEqual(await engine.download(x), new Float32Array(1));
});

test("ONNX Runtime's own failures name the program, the call and the reason", async () => {
  const gather = await load('gather');
  const table = zeros([3, 2]);
  const ids = engine.upload(new BigInt64Array([5n]), 'int64', [1]);
  await assert.rejects(
    engine.run([
      { kind: 'fill', tensor: table, value: 1 },
      { kind: 'run', program: gather, inputs: { table, ids }, outputs: { rows: zeros([1, 2]) } },
    ]),
    failsWith('RUNTIME_FAILED', 'program gather (call 2 of 2)', 'ONNX Runtime failed', '5'),
  );
  assert.equal((await engine.download(table))[0], 1, 'the engine goes on');
  const nonzero = await load('nonzero');
  const x = engine.upload(new Float32Array([1, 0, 1]), 'float32', [3]);
  for (const count of [1, 3]) {
    await assert.rejects(
      run(nonzero, { x }, { places: zeros([1, count], 'int64') }),
      failsWith('RUNTIME_FAILED', 'nonzero'),
      `an output of ${count} places where 2 are needed`,
    );
  }
});

test('a model that is none, or whose values cannot cross', async () => {
  await assert.rejects(
    engine.compileModel(new Uint8Array([1, 2, 3]), { name: 'junk' }),
    failsWith('PROGRAM_INVALID', 'program junk'),
  );
  for (const name of ['cast-bfloat16', 'cast-int16']) {
    await assert.rejects(load(name), failsWith('PROGRAM_DTYPE_UNSUPPORTED', name, 'Cast inside the graph'));
  }
});

test('a released program', async () => {
  const program = await load('matmul');
  const x = zeros([1, 1]);
  const running = run(program, { a: x, b: x }, { c: zeros([1, 1]) });
  program.release();
  program.release();
  await running;
  await assert.rejects(run(program, { a: x, b: x }, { c: x }), failsWith('PROGRAM_RELEASED', 'matmul'));
});

test('a freed tensor and its views', async () => {
  const a = zeros([2, 2]);
  const view = engine.view(a, { offset: 0, shape: [1] });
  engine.free(a);
  for (const use of [
    () => engine.free(a),
    () => engine.fill(a, 1),
    () => engine.fill(view, 1),
    () => engine.write(a, new Float32Array(4)),
    () => engine.copy(a, zeros([2, 2])),
    () => engine.view(a, { offset: 0, shape: [1] }),
  ]) {
    assert.throws(use, failsWith('TENSOR_FREED', 'float32'));
  }
  await assert.rejects(engine.download(view), failsWith('TENSOR_FREED', '[1]'));
  const b = zeros([2, 2]);
  await assert.rejects(
    run(matmul, { a: b, b: a }, { c: b }),
    failsWith('TENSOR_FREED', 'program matmul (call 1 of 1), input b'),
  );
});

test('data, shapes and views that do not fit', () => {
  assert.throws(
    () => engine.upload(new Float32Array(3), 'float32', [2, 2]),
    failsWith('TENSOR_DATA_MISMATCH', 'Float32Array of 4', 'Float32Array of 3'),
  );
  assert.throws(
    () => engine.upload(new Int32Array(1), 'int64', [1]),
    failsWith('TENSOR_DATA_MISMATCH', 'BigInt64Array of 1', 'Int32Array of 1'),
  );
  assert.throws(() => engine.write(zeros([2]), new Float32Array(1)), failsWith('TENSOR_DATA_MISMATCH', 'write'));
  assert.throws(() => engine.fill(zeros([2], 'int64'), 0.5), failsWith('TENSOR_DATA_MISMATCH', '0.5'));
  assert.throws(() => engine.copy(zeros([2]), zeros([3])), failsWith('TENSOR_COPY_MISMATCH', '[2]', '[3]'));
  assert.throws(() => zeros([2, -1]), failsWith('TENSOR_SHAPE_INVALID', '[2, -1]'));
  assert.throws(() => zeros([1.5]), failsWith('TENSOR_SHAPE_INVALID', '1.5'));
  assert.throws(
    () => zeros([1], 'bfloat16' as TensorDtype),
    failsWith('TENSOR_DTYPE_UNSUPPORTED', 'bfloat16', 'float16'),
  );
  const four = zeros([4]);
  for (const part of [
    { offset: 3, shape: [2] },
    { offset: -1, shape: [1] },
    { offset: 0.5, shape: [1] },
  ]) {
    assert.throws(() => engine.view(four, part), failsWith('TENSOR_VIEW_OUT_OF_RANGE', 'elements 0 to 4'));
  }
});

test('a command without an answer that fails is told by the next call with one, once', async () => {
  const good = engine.upload(new Float32Array([5]), 'float32', [1]);
  const huge = zeros([2 ** 40], 'uint8');
  engine.fill(huge, 1);
  await assert.rejects(engine.download(good), failsWith('OUT_OF_MEMORY', 'command allocate', 'Free tensors'));
  assert.deepEqual(await engine.download(good), new Float32Array([5]));
  engine.free(huge);
  await engine.memory();
});

test('a device that cannot be had is refused', async () => {
  for (const device of ['cuda', 'webgpu'] as const) {
    const opened = await openEngine({ device }).catch((error: unknown) => error);
    if (opened instanceof Error) {
      failsWith(
        'DEVICE_UNAVAILABLE',
        `device ${device}`,
        'ONNX Runtime cannot use it here',
        'choose the device cpu',
      )(opened);
    } else {
      console.log(`this machine has ${device}`);
      assert.equal((opened as Engine).device, device);
      await (opened as Engine).close();
    }
  }
});

test('engine options that have no such value', async () => {
  await assert.rejects(
    openEngine({ device: 'tpu' as DeviceName }),
    failsWith('ENGINE_OPTION_INVALID', 'device', 'tpu'),
  );
  for (const threads of [0, 1.5]) {
    await assert.rejects(openEngine({ threads }), failsWith('ENGINE_OPTION_INVALID', 'threads', String(threads)));
  }
  await assert.rejects(
    openEngine({ precision: 'int4' as ProductPrecision }),
    failsWith('ENGINE_OPTION_INVALID', 'precision', 'int4'),
  );
  for (const device of ['cpu', 'auto'] as const) {
    await assert.rejects(
      openEngine({ device, precision: 'bfloat16' }),
      failsWith('PRECISION_NOT_ON_DEVICE', 'bfloat16', 'float32 on cpu'),
      'only CUDA has coarser products',
    );
  }
});

test('a closed engine', async () => {
  const closed = await openEngine({ threads: 1 });
  const x = closed.allocate('float32', [1]);
  const last = closed.download(x);
  await closed.close();
  await closed.close();
  assert.deepEqual(await last, new Float32Array(1), 'what was asked before is still answered');
  assert.throws(() => closed.fill(x, 1), failsWith('ENGINE_CLOSED', 'fill'));
  await assert.rejects(closed.run([]), failsWith('ENGINE_CLOSED', 'run'));
  await assert.rejects(closed.compileModel(new Uint8Array(), { name: 'late' }), failsWith('ENGINE_CLOSED', 'compile'));
});

test('a worker that crashes or is ended fails what is under way and all that follows', async () => {
  const link = startWorker();
  await link.request({
    kind: 'open',
    options: { device: 'cpu', threads: 1, precision: 'float32', enableMemoryArena: true },
  });
  const ended = createEngine(link, { device: 'cpu', deviceReason: 'cpu, as asked', precision: 'float32' });
  const program = await load('matmul', ended);
  const x = ended.allocate('float32', [512, 512]);
  const call = {
    kind: 'run',
    program,
    inputs: { a: x, b: x },
    outputs: { c: ended.allocate('float32', [512, 512]) },
  } as const;
  const running = assert.rejects(ended.run(Array.from({ length: 1000 }, () => call)), failsWith('RUNTIME_WORKER_LOST'));
  await setTimeout(20);
  await link.terminate();
  await running;
  await assert.rejects(ended.memory(), failsWith('RUNTIME_WORKER_LOST'));
  assert.throws(() => ended.fill(x, 1), failsWith('RUNTIME_WORKER_LOST'));
  await ended.close();

  const crashing = startWorker();
  // No command at all: the worker's own code throws outside of any handler.
  crashing.send(null as unknown as WorkerCommand);
  await assert.rejects(
    crashing.request({ kind: 'memory' }),
    failsWith('RUNTIME_WORKER_LOST', 'during memory', 'crashed'),
  );
});
