import assert from 'node:assert/strict';
import { gradientError } from '@stillhouse/gradient-check';
import { openEngine } from '@stillhouse/runtime';
import { expectClose, randomNormals, randomUniforms } from '@stillhouse/testing';
import { afterAll, test } from 'vitest';
import { ABSENT_LOGPROB, emitDivergence, emitSampledDistributions, type LabelArray } from '../index.ts';
import { computeSoftLoss, floats, ids, logSoftmaxAt } from '../testing/soft-loss.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

const V = 12;

/** Draws of some positions as `lossGraph` takes them: entries of id and weight, padded. */
function asLabels(positions: readonly (readonly (readonly [id: number, weight: number])[])[]) {
  const width = Math.max(...positions.map((entries) => entries.length));
  const padded = positions.map((entries) => [
    ...entries.map(([id, weight]) => [id, Math.log(weight)] as const),
    ...Array.from({ length: width - entries.length }, () => [entries[0]![0], ABSENT_LOGPROB] as const),
  ]);
  return new Map<string, LabelArray>([
    [
      'teacher.sampled_ids',
      ids(
        padded.flatMap((entries) => entries.map(([id]) => id)),
        width,
      ),
    ],
    [
      'teacher.sampled_logweights',
      floats(
        padded.flatMap((entries) => entries.map(([, log]) => log)),
        width,
      ),
    ],
  ]);
}

const makeLogits = (seed: number, count: number, scale: number) => {
  const random = randomNormals(seed);
  return Float64Array.from({ length: count }, () => scale * random());
};

const fullGradient = (p: Float64Array, student: Float64Array, temperature: number) =>
  logSoftmaxAt(student, temperature).map((log, id) => (Math.exp(log) - Math.exp(p[id]!)) / temperature);

for (const temperature of [1, 2.5]) {
  test(`counts in proportion to the probabilities are full labels, T = ${temperature}`, async () => {
    const probabilities = [4, 3, 2, 1, 1, 1, 1, 1, 1, 0, 0, 1].map((share) => share / 16);
    const student = makeLogits(5, V, 1.5);
    const entries = probabilities.flatMap((p, id) => (p > 0 ? [[id, p] as const] : []));
    const ours = await computeSoftLoss(engine, {
      labels: { kind: 'sampled' },
      ...{ temperature, student, vocabSize: V },
      teacher: asLabels([entries]),
    });
    const q = logSoftmaxAt(student, temperature);
    const kl = probabilities.reduce((sum, p, id) => sum + (p === 0 ? 0 : p * (Math.log(p) - q[id]!)), 0);
    expectClose(ours.perPosition, [kl], { absolute: 1e-12, where: 'KL' });
    const wanted = q.map((log, id) => (Math.exp(log) - probabilities[id]!) / temperature);
    expectClose(ours.gradient, wanted, { absolute: 1e-12, where: 'gradient' });
  });

  test(`the mean gradient of many draws is the gradient of the full KL, T = ${temperature}`, async () => {
    const p = logSoftmaxAt(makeLogits(2, V, 1.5), temperature);
    const student = makeLogits(9, V, 1.5);
    const [trials, draws] = [4000, 8];
    const uniform = randomUniforms(31);
    const drawOne = () => {
      let left = uniform();
      for (const [id, log] of p.entries()) {
        left -= Math.exp(log);
        if (left < 0) return id;
      }
      return V - 1;
    };
    const positions = Array.from({ length: trials }, () => {
      const counts = new Map<number, number>();
      for (let n = 0; n < draws; n++) {
        const id = drawOne();
        counts.set(id, (counts.get(id) ?? 0) + 1);
      }
      return [...counts].map(([id, count]) => [id, count / draws] as const);
    });
    const everywhere = new Float64Array(trials * V);
    for (let n = 0; n < trials; n++) everywhere.set(student, n * V);
    const { gradient } = await computeSoftLoss(engine, {
      labels: { kind: 'sampled' },
      ...{ temperature, student: everywhere, vocabSize: V },
      teacher: asLabels(positions),
    });
    const wanted = fullGradient(p, student, temperature);
    const spread = wanted.map((value, id) => {
      let [sum, squares] = [0, 0];
      for (let n = 0; n < trials; n++) {
        sum += gradient[n * V + id]!;
        squares += (gradient[n * V + id]! - value) ** 2;
      }
      const error = Math.sqrt(squares / trials / trials);
      assert.ok(error > 0, 'the draws do not vary');
      return (sum / trials - value) / error;
    });
    // Standard normal each, were the estimate unbiased; twelve of them rarely leave ±3.5.
    assert.ok(
      spread.every((one) => Math.abs(one) < 3.5),
      `off by standard errors of ${[...spread].join(', ')}`,
    );
    assert.ok(
      spread.some((one) => Math.abs(one) > 0.3),
      'closer than chance allows',
    );
  });
}

test('gradient check with positions of unlike numbers of entries', async () => {
  const labels = asLabels([
    [
      [3, 0.5],
      [0, 0.25],
      [7, 0.25],
    ],
    [[11, 1]],
  ]);
  const error = await gradientError(engine, {
    inputs: [{ shape: [2, V] }],
    build: (g, [student]) => {
      const drawn = g.constant(labels.get('teacher.sampled_ids')!.data as BigInt64Array, 'int64', [2, 3]);
      const logWeights = g.constant(labels.get('teacher.sampled_logweights')!.data as Float64Array, 'float64', [2, 3]);
      const distributions = emitSampledDistributions(g, student!, { ids: drawn, logWeights }, g.scalar(2));
      return [emitDivergence(g, { kind: 'forward-kl' }, distributions)];
    },
  });
  assert.ok(error < 1e-8, `largest error ${error}`);
});
