import assert from 'node:assert/strict';
import { GraphBuilder } from '@stillhouse/onnx-graph';
import { openEngine } from '@stillhouse/runtime';
import { test } from 'vitest';

test('an encoded graph computes what it says at any value of its symbols', async (t) => {
  const engine = await openEngine({ threads: 1 });
  t.onTestFinished(() => engine.close());
  const g = new GraphBuilder('symbols', 'float64');
  const x = g.floatInput('x', ['B*T', 6]);
  g.input('shape', 'int64', ['B', 'T']);
  const heads = g.transpose(g.reshape(x, ['B', 'T', 2, 3]), [0, 2, 1, 3]);
  g.output('y', g.reshape(g.add(heads, g.expand(g.scalar(1), ['B', 2, 'T', 3])), ['2*B', 'T', 3]));
  const program = await engine.compile(g);
  for (const [B, T] of [
    [1, 1],
    [2, 3],
  ] as const) {
    const values = Float64Array.from({ length: B * T * 6 }, (_, i) => i);
    const y = engine.allocate('float64', [2 * B, T, 3]);
    const inputs = { x: engine.upload(values, 'float64', [B * T, 6]), shape: engine.allocate('int64', [B, T]) };
    await engine.run([{ kind: 'run', program, inputs, outputs: { y } }]);
    const expected = Array.from({ length: B * 2 * T * 3 }, (_, i) => {
      const [b, h, s, d] = [Math.floor(i / (2 * T * 3)), Math.floor(i / (T * 3)) % 2, Math.floor(i / 3) % T, i % 3];
      return 1 + (b * T + s) * 6 + h * 3 + d;
    });
    assert.deepEqual([...((await engine.download(y)) as Float64Array)], expected);
  }
});
