import assert from 'node:assert/strict';
import { GraphBuilder } from '@stillhouse/onnx-graph';
import { openEngine } from '@stillhouse/runtime';
import { expectClose, randomNormals } from '@stillhouse/testing';
import fc from 'fast-check';
import { afterAll, test } from 'vitest';
import { countSelected, emitEntropy, selectionGraph } from '../index.ts';
import { logSoftmaxAt } from '../testing/soft-loss.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

test('a share is rounded up, and one position is always kept', () => {
  assert.deepEqual(
    [0, 1, 2, 3, 30].map((targets) => countSelected(targets, 0.1)),
    [0, 1, 1, 1, 3],
  );
  fc.assert(
    fc.property(fc.nat({ max: 5000 }), fc.double({ min: 0.001, max: 1, noNaN: true }), (targets, share) => {
      const kept = countSelected(targets, share);
      assert.equal(countSelected(targets, 1), targets);
      assert.ok(kept <= targets && Math.abs(kept - targets * share) <= 1 && (targets === 0 || kept >= 1));
    }),
  );
});

for (const vocabSize of [7, 5000]) {
  test(`entropy over ${vocabSize} ids`, async () => {
    const random = randomNormals(5);
    const logits = Float64Array.from({ length: 3 * vocabSize }, () => 3 * random());
    const g = new GraphBuilder('entropy', 'float64');
    g.output('entropy', emitEntropy(g, g.floatInput('logits', ['N', vocabSize])));
    const program = await engine.compile(g);
    const entropy = engine.allocate('float64', [3]);
    const inputs = { logits: engine.upload(logits, 'float64', [3, vocabSize]) };
    await engine.run([{ kind: 'run', program, inputs, outputs: { entropy } }]);
    const wanted = Array.from({ length: 3 }, (_, n) =>
      logSoftmaxAt(logits.slice(n * vocabSize, (n + 1) * vocabSize), 1).reduce((sum, l) => sum - Math.exp(l) * l, 0),
    );
    expectClose((await engine.download(entropy)) as Float64Array, wanted, { absolute: 1e-11, where: 'entropy' });
  });
}

test('exactly the positions of highest entropy keep their weight, the earlier one among equals', async () => {
  const g = selectionGraph('float32');
  const program = await engine.compile(g);
  const select = async (entropies: readonly number[], kept: number, chunk: number) => {
    const upload = (values: readonly number[]) => engine.upload(Float32Array.from(values), 'float32', [values.length]);
    const order = [...entropies.keys()];
    const weights: number[] = [];
    for (let from = 0; from < entropies.length; from += chunk) {
      const own = order.slice(from, from + chunk);
      const selected = engine.allocate('float32', [own.length]);
      const keptScalar = engine.allocate('float32', []);
      engine.fill(keptScalar, kept);
      const inputs = {
        entropy: upload(own.map((i) => entropies[i]!)),
        order: upload(own),
        weights: upload(own.map((i) => i + 1)),
        'row.entropy': upload(entropies),
        'row.order': upload(order),
        kept: keptScalar,
      };
      await engine.run([{ kind: 'run', program, inputs, outputs: { selected } }]);
      weights.push(...((await engine.download(selected)) as Float32Array));
      for (const tensor of [...Object.values(inputs), selected]) engine.free(tensor);
    }
    return weights;
  };
  assert.deepEqual(await select([1, 3, 2, 3], 2, 4), [0, 2, 0, 4]);
  assert.deepEqual(await select([3, 3, 3, 3], 3, 4), [1, 2, 3, 0]);
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.integer({ min: 0, max: 6 }), { minLength: 1, maxLength: 12 }),
      fc.integer({ min: 1, max: 12 }),
      fc.integer({ min: 1, max: 5 }),
      async (entropies, kept, chunk) => {
        const best = [...entropies.keys()].sort((a, b) => entropies[b]! - entropies[a]! || a - b).slice(0, kept);
        const wanted = entropies.map((_, i) => (best.includes(i) ? i + 1 : 0));
        assert.deepEqual(await select(entropies, kept, chunk), wanted);
      },
    ),
    { numRuns: 40 },
  );
});
