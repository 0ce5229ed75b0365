import assert from 'node:assert/strict';
import { encodeModel, GraphBuilder } from '@stillhouse/onnx-graph';
import { openEngine } from '@stillhouse/runtime';
import { test } from 'vitest';

function makeGraph(float: 'float32' | 'float64', allows: boolean): GraphBuilder {
  const g = new GraphBuilder('accumulate', float, { allowsCoarseProducts: allows });
  const [x, w, sum] = [g.floatInput('x', ['N', 4]), g.floatInput('w', [3, 4]), g.floatInput('sum', ['N', 3])];
  g.output('y', g.gemm(x, w, { transB: true, c: sum }));
  return g;
}

test('ONNX Runtime takes the lowered model, and a device without such products refuses it by name', async () => {
  const engine = await openEngine({ threads: 1 });
  const model = encodeModel(makeGraph('float32', true), 'cuda', 'bfloat16');
  await assert.rejects(engine.compileModel(model, { name: 'accumulate' }), /Gemm/);
  await engine.close();
});
