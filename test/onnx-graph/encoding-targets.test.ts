import assert from 'node:assert/strict';
import { isStillhouseError } from '@stillhouse/errors';
import { encodeModel, GraphBuilder } from '@stillhouse/onnx-graph';
import { openEngine } from '@stillhouse/runtime';
import { expectClose } from '@stillhouse/testing';
import { afterAll, test } from 'vitest';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

const ROWS = 3;
const WIDTH = 5;
const X = Float32Array.from({ length: ROWS * WIDTH }, (_, i) => 400 * Math.sin(i * 1.3));

async function run(g: GraphBuilder, shapes: Readonly<Record<string, readonly number[]>>) {
  const program = await engine.compileModel(encodeModel(g, 'webgpu'), { name: g.name });
  const x = engine.upload(X, 'float32', [ROWS, WIDTH]);
  const outputs = Object.fromEntries(
    Object.entries(shapes).map(([name, shape]) => [name, engine.allocate('float32', shape)]),
  );
  await engine.run([{ kind: 'run', program, inputs: { x }, outputs }]);
  const values = await engine.downloadMany(Object.values(outputs));
  return new Map(Object.keys(outputs).map((name, i) => [name, values[i] as Float32Array]));
}

test('the logarithms of sums of exponentials that webgpu gets are right where exponentials overflow', async () => {
  const g = new GraphBuilder('lowered');
  const x = g.floatInput('x', ['R', WIDTH]);
  g.output('kept', g.reduceLogSumExp(x, [1], true));
  g.output('dropped', g.reduceLogSumExp(x, [1]));
  g.output('softmax', g.logSoftmax(x, 1));
  const got = await run(g, { kept: [ROWS, 1], dropped: [ROWS], softmax: [ROWS, WIDTH] });
  const rows = Array.from({ length: ROWS }, (_, row) => Array.from(X.subarray(row * WIDTH, (row + 1) * WIDTH)));
  const sums = rows.map((row) => {
    const largest = Math.max(...row);
    return largest + Math.log(row.reduce((sum, one) => sum + Math.exp(one - largest), 0));
  });
  const close = { absolute: 1e-4 };
  expectClose(got.get('kept')!, sums, { ...close, where: 'kept' });
  expectClose(got.get('dropped')!, sums, { ...close, where: 'dropped' });
  const logSoftmax = rows.flatMap((row, i) => row.map((one) => one - sums[i]!));
  expectClose(got.get('softmax')!, logSoftmax, { ...close, where: 'softmax' });
});

test('a shape that only the run knows is an input that the engine fills in', async () => {
  const g = new GraphBuilder('shapes');
  const x = g.floatInput('x', ['R', 'W']);
  g.output('spread', g.expand(g.reshape(x, ['R', 1, 'W']), ['R', 2, 'W']));
  const got = await run(g, { spread: [ROWS, 2, WIDTH] });
  const rows = Array.from({ length: ROWS }, (_, row) => [...X.subarray(row * WIDTH, (row + 1) * WIDTH)]);
  assert.deepEqual(
    [...got.get('spread')!],
    rows.flatMap((row) => [...row, ...row]),
  );
});

test('a graph may want its shapes from the run on the CPU too, and computes the same', async () => {
  const results = [];
  for (const takesShapes of [false, true]) {
    const g = new GraphBuilder('shapes', 'float32', { takesShapes });
    const x = g.floatInput('x', ['R', 'W']);
    g.output('spread', g.softmax(g.expand(g.reshape(x, ['R', 1, 'W']), ['R', 2, 'W']), 2));
    const program = await engine.compile(g);
    assert.deepEqual(program.shapeInputs, takesShapes ? ['shape(R,1,W)', 'shape(R,2,W)'] : []);
    const spread = engine.allocate('float32', [ROWS, 2, WIDTH]);
    const inputs = { x: engine.upload(X, 'float32', [ROWS, WIDTH]) };
    await engine.run([{ kind: 'run', program, inputs, outputs: { spread } }]);
    results.push(await engine.download(spread));
  }
  assert.deepEqual(results[1], results[0]);
});

test('a model for CUDA is of the oldest operator set that has its operators, and computes the same', async () => {
  const g = new GraphBuilder('norm');
  const x = g.floatInput('x', ['R', 'W', 4]);
  g.output('y', g.reshape(g.rmsNormalization(x, g.floatInput('scale', [4]), 1e-6), ['W', 'R', 4]));
  // opset_import, field 8 of the model: an empty domain and the version.
  const isOfSet = (model: Uint8Array, version: number) =>
    Buffer.from(model).includes(Buffer.from([0x42, 4, 0x0a, 0, 0x10, version]));
  assert.ok(isOfSet(encodeModel(g), 26));
  assert.ok(isOfSet(encodeModel(g, 'cuda'), 23));
  const data = Float32Array.from({ length: 24 }, (_, i) => Math.sin(i));
  const results = [];
  for (const target of ['any', 'cuda'] as const) {
    const program = await engine.compileModel(encodeModel(g, target), { name: target });
    assert.equal(program.shapeInputs.length, target === 'cuda' ? 1 : 0);
    const inputs = {
      x: engine.upload(data, 'float32', [2, 3, 4]),
      scale: engine.upload(new Float32Array(4).fill(1), 'float32', [4]),
    };
    const y = engine.allocate('float32', [3, 2, 4]);
    await engine.run([{ kind: 'run', program, inputs, outputs: { y } }]);
    results.push(await engine.download(y));
  }
  assert.deepEqual(results[1], results[0]);
});

test('operators that webgpu lacks are refused, all of them by name', () => {
  const g = new GraphBuilder('unfit');
  const x = g.floatInput('x', ['N']);
  const ids = g.input('ids', 'int64', ['N']);
  g.output('round', g.round(x));
  g.output('float', g.cast(ids, 'float32'));
  g.output('column', g.reshape(ids, ['N', 1]));
  assert.throws(
    () => encodeModel(g, 'webgpu'),
    (error) => {
      assert.ok(isStillhouseError(error, 'GRAPH_UNSUPPORTED_BY_DEVICE'));
      assert.match(error.message, /Round \(Round\): it has no kernel; Cast \(Cast\): operand 0 is int64.*; Reshape/);
      return true;
    },
  );
  assert.ok(encodeModel(g).length > 0, 'and only there');
});

test('sine beside a norm is refused on webgpu, where no operator set has kernels for both', () => {
  const g = new GraphBuilder('sets');
  const x = g.floatInput('x', ['N', 4]);
  g.output('sine', g.sin(g.rmsNormalization(x, g.floatInput('scale', [4]), 1e-6)));
  assert.throws(() => encodeModel(g, 'webgpu'), /Sin \(Sin\): in one graph with an operator of set 23/);
});
