import assert from 'node:assert/strict';
import { type EncodingTarget, encodeModel, type FloatDtype, GraphBuilder } from '@stillhouse/onnx-graph';
import { openEngine } from '@stillhouse/runtime';
import { expectClose } from '@stillhouse/testing';
import { afterAll, test } from 'vitest';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

const [BATCH, LENGTH, HEADS, HALF] = [2, 3, 2, 2];
const WIDTH = HEADS * 2 * HALF;
const x = Float64Array.from({ length: BATCH * LENGTH * WIDTH }, (_, i) => Math.sin(1.3 * i));
const cos = Float64Array.from({ length: BATCH * LENGTH * HALF }, (_, i) => Math.cos(0.4 * i));
const sin = Float64Array.from({ length: BATCH * LENGTH * HALF }, (_, i) => Math.sin(0.4 * i));

async function turn(float: FloatDtype, target: EncodingTarget): Promise<Float64Array> {
  const g = new GraphBuilder('turn', float);
  const tables = ['B', 'T', HALF];
  const operands = [g.floatInput('x', ['B', 'T', WIDTH]), g.floatInput('cos', tables), g.floatInput('sin', tables)];
  g.output('y', g.rotaryEmbedding(operands[0]!, operands[1]!, operands[2]!, HEADS));
  const program = await engine.compileModel(encodeModel(g, target), { name: 'turn' });
  const upload = (data: Float64Array, width: number) =>
    engine.upload(float === 'float64' ? data.slice() : Float32Array.from(data), float, [BATCH, LENGTH, width]);
  const y = engine.allocate(float, [BATCH, LENGTH, WIDTH]);
  const inputs = { x: upload(x, WIDTH), cos: upload(cos, HALF), sin: upload(sin, HALF) };
  await engine.run([{ kind: 'run', program, inputs, outputs: { y } }]);
  return Float64Array.from((await engine.download(y)) as Float32Array);
}

test('ONNX Runtime turns heads as the formula does, and so do the operators in its place', async () => {
  const expected = x.map((_, i) => {
    const column = Math.floor(i / WIDTH);
    const at = i % (2 * HALF);
    const [c, s] = [cos, sin].map((table) => table[column * HALF + (at % HALF)]!) as [number, number];
    return at < HALF ? x[i]! * c - x[i + HALF]! * s : x[i]! * c + x[i - HALF]! * s;
  });
  expectClose(await turn('float64', 'any'), expected, { absolute: 1e-14, where: 'lowered, float64' });
  for (const target of ['any', 'webgpu'] as const)
    expectClose(await turn('float32', target), expected, { absolute: 1e-6, where: target });
});

test('heads that do not fit the width and tables of another shape are refused', () => {
  const g = new GraphBuilder('turn');
  const table = (shape: readonly number[]) => g.floatInput(`table${shape.join()}`, shape);
  const operand = g.floatInput('x', [2, 3, 8]);
  const fitting = table([2, 3, 2]);
  assert.throws(() => g.rotaryEmbedding(operand, fitting, fitting, 3), { code: 'GRAPH_TYPE_ERROR' });
  const wrong = table([2, 3, 4]);
  assert.throws(() => g.rotaryEmbedding(operand, fitting, wrong, 2), /tables do not fit/);
});
