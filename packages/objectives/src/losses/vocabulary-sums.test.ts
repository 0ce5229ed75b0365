import assert from 'node:assert/strict';
import { gradientError } from '@stillhouse/gradient-check';
import { GraphBuilder } from '@stillhouse/onnx-graph';
import { openEngine } from '@stillhouse/runtime';
import { randomNormals } from '@stillhouse/testing';
import { afterAll, test } from 'vitest';
import { emitLogSumExp, emitRowSum, REMOVED_SCORE } from '../index.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

const ROWS = 2;

/** Scores of which one is far ahead, as a teacher's are that is sure. */
function makeScores(length: number) {
  const random = randomNormals(17);
  return Float32Array.from({ length: ROWS * length }, (_, i) => 2.5 * random() + (i % length === 5 ? 18 : 0));
}

// The vocabulary of Qwen2 (128 · 1187), a prime, one without a divisor of use, and one that is summed as it is.
for (const length of [151_936, 4099, 2 * 3307, 600]) {
  test(`sums over ${length} numbers lose nothing that float32 can hold`, async () => {
    const scores = makeScores(length);
    const g = new GraphBuilder('sums', 'float32');
    const x = g.floatInput('x', ['N', length]);
    g.output('logSum', emitLogSumExp(g, x));
    g.output('sum', emitRowSum(g, g.exp(g.sub(x, g.reduceMax(x, [1], true)))));
    const program = await engine.compile(g);
    const outputs = { logSum: engine.allocate('float32', [ROWS, 1]), sum: engine.allocate('float32', [ROWS, 1]) };
    const inputs = { x: engine.upload(scores, 'float32', [ROWS, length]) };
    await engine.run([{ kind: 'run', program, inputs, outputs }]);
    const [logSums, sums] = (await engine.downloadMany([outputs.logSum, outputs.sum])) as [Float32Array, Float32Array];
    for (let row = 0; row < ROWS; row++) {
      const own = scores.subarray(row * length, (row + 1) * length);
      const most = own.reduce((a, b) => Math.max(a, b));
      const sum = own.reduce((total, score) => total + Math.exp(score - most), 0);
      assert.ok(Math.abs(logSums[row]! - most - Math.log(sum)) < 5e-6, `log-sum ${logSums[row]}`);
      assert.ok(Math.abs(sums[row]! / sum - 1) < 3e-6, `sum ${sums[row]} of ${sum}`);
    }
  });
}

test('a row of removed scores stays finite', async () => {
  const g = new GraphBuilder('removed', 'float32');
  const x = g.floatInput('x', ['N', 1030]);
  g.output('y', emitLogSumExp(g, x));
  const program = await engine.compile(g);
  const inputs = { x: engine.upload(new Float32Array(1030).fill(REMOVED_SCORE), 'float32', [1, 1030]) };
  const outputs = { y: engine.allocate('float32', [1, 1]) };
  await engine.run([{ kind: 'run', program, inputs, outputs }]);
  assert.equal((await engine.download(outputs.y))[0], Math.fround(REMOVED_SCORE));
});

test('gradient check, with a filled-up last block', async () => {
  const error = await gradientError(engine, {
    inputs: [{ shape: [1, 1031] }],
    build: (g, [x]) => [emitLogSumExp(g, x!), emitRowSum(g, g.mul(x!, x!))],
  });
  assert.ok(error < 1e-8, `largest error ${error}`);
});
