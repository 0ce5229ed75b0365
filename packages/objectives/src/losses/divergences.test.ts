import assert from 'node:assert/strict';
import { type GradientCase, gradientError } from '@stillhouse/gradient-check';
import { GraphBuilder, type Value } from '@stillhouse/onnx-graph';
import { openEngine } from '@stillhouse/runtime';
import { expectClose, randomNormals } from '@stillhouse/testing';
import { afterAll, test } from 'vitest';
import {
  ABSENT_LOGPROB,
  type Divergence,
  emitDivergence,
  emitForwardKl,
  emitTopKDistributions,
  explainUnsoundDivergence,
  LOST_TAIL_LOGPROB,
  type SoftLabels,
} from '../index.ts';
import { computeSoftLoss, floats, ids, logSoftmaxAt } from '../testing/soft-loss.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

const V = 12;
const KL: Divergence = { kind: 'forward-kl' };
const ALL: readonly Divergence[] = [
  KL,
  { kind: 'reverse-kl' },
  { kind: 'jensen-shannon', beta: 0.5 },
  { kind: 'jensen-shannon', beta: 0.1 },
  { kind: 'skew-kl', skew: 0.1 },
  { kind: 'skew-kl', skew: 0.6 },
  { kind: 'total-variation' },
];
const nameOf = (divergence: Divergence) => Object.values(divergence).join(' ');

/** By the definition, in probabilities. */
function define(divergence: Divergence, p: Float64Array, q: Float64Array): number {
  const kl = (a: Float64Array, b: Float64Array) =>
    a.reduce((sum, one, i) => sum + (one === 0 ? 0 : one * Math.log(one / b[i]!)), 0);
  const mix = (share: number) => p.map((one, i) => share * one + (1 - share) * q[i]!);
  switch (divergence.kind) {
    case 'forward-kl':
      return kl(p, q);
    case 'reverse-kl':
      return kl(q, p);
    case 'jensen-shannon':
      return divergence.beta * kl(p, mix(divergence.beta)) + (1 - divergence.beta) * kl(q, mix(divergence.beta));
    case 'skew-kl':
      return kl(p, mix(divergence.skew));
    case 'total-variation':
      return p.reduce((sum, one, i) => sum + Math.abs(one - q[i]!) / 2, 0);
  }
}

/** The greatest value that there is. */
function boundOf(divergence: Divergence): number {
  switch (divergence.kind) {
    case 'jensen-shannon': {
      const { beta } = divergence;
      return -beta * Math.log(beta) - (1 - beta) * Math.log(1 - beta);
    }
    case 'skew-kl':
      return -Math.log(divergence.skew);
    case 'total-variation':
      return 1;
    default:
      return Number.POSITIVE_INFINITY;
  }
}

function makeLogits(seed: number, positions: number, sharpness: number): Float64Array {
  const random = randomNormals(seed);
  return Float64Array.from({ length: positions * V }, () => sharpness * random());
}

/** Full labels whose output matrix is the identity: hidden states are the logits. */
function onFull(
  teacher: Float64Array,
  student: Float64Array,
  divergence: Divergence,
  temperature: number,
  float: 'float32' | 'float64' = 'float64',
) {
  return computeSoftLoss(engine, {
    labels: { kind: 'full', teacherHidden: V },
    teacher: new Map([['teacher.hidden', floats(teacher, V)]]),
    head: Float64Array.from({ length: V * V }, (_, i) => (i % (V + 1) === 0 ? 1 : 0)),
    vocabSize: V,
    ...{ student, divergence, temperature, float },
  });
}

function topKOf(teacher: Float64Array, k: number, temperature: number) {
  const positions = Array.from({ length: teacher.length / V }, (_, n) => {
    const logprobs = logSoftmaxAt(teacher.slice(n * V, (n + 1) * V), temperature);
    const best = [...logprobs.keys()].sort((a, b) => logprobs[b]! - logprobs[a]!);
    const outside = best.slice(k).reduce((sum, id) => sum + Math.exp(logprobs[id]!), 0);
    const kept = best.slice(0, k);
    return {
      ids: kept,
      logprobs: kept.map((id) => logprobs[id]!),
      tail: outside > 0 ? Math.log(outside) : ABSENT_LOGPROB,
    };
  });
  return new Map([
    [
      'teacher.topk_ids',
      ids(
        positions.flatMap((one) => one.ids),
        k,
      ),
    ],
    [
      'teacher.topk_logprobs',
      floats(
        positions.flatMap(({ logprobs }) => logprobs),
        k,
      ),
    ],
    ['teacher.tail_logprob', floats(positions.map(({ tail }) => tail))],
  ]);
}

function onTopK(
  teacher: Float64Array,
  student: Float64Array,
  divergence: Divergence,
  {
    k,
    temperature,
    tail = 'tail',
  }: { readonly k: number; readonly temperature: number; readonly tail?: 'tail' | 'bucket' },
) {
  return computeSoftLoss(engine, {
    labels: { kind: 'topk', k, tail, isWhole: false },
    teacher: topKOf(teacher, k, tail === 'tail' ? temperature : 1),
    vocabSize: V,
    ...{ student, divergence, temperature },
  });
}

const [TEACHER, STUDENT] = [makeLogits(3, 6, 2), makeLogits(8, 6, 2)];

for (const divergence of ALL) {
  test(`${nameOf(divergence)} is its definition, 0 at equality, and within its bounds`, async () => {
    for (const temperature of [1, 2.5]) {
      const { perPosition } = await onFull(TEACHER, STUDENT, divergence, temperature);
      const wanted = Array.from({ length: 6 }, (_, n) => {
        const at = (logits: Float64Array) => logSoftmaxAt(logits.slice(n * V, (n + 1) * V), temperature).map(Math.exp);
        return define(divergence, at(TEACHER), at(STUDENT));
      });
      expectClose(perPosition, wanted, { absolute: 1e-12, where: `T = ${temperature}` });
    }
    const same = await onFull(TEACHER, TEACHER, divergence, 2);
    expectClose(same.perPosition, new Float64Array(6), { absolute: 1e-14, where: 'at equality' });
    // The sides of total variation's kink meet at equality: any subgradient is right there.
    if (divergence.kind !== 'total-variation')
      expectClose(same.gradient, new Float64Array(6 * V), { absolute: 1e-14, where: 'gradient at equality' });
    for (const float of ['float64', 'float32'] as const) {
      // So far apart that probabilities of float32 would be zero on either side.
      const [p, q] = [makeLogits(4, 8, 150), makeLogits(5, 8, 150)];
      const { perPosition, gradient } = await onFull(p, q, divergence, 1, float);
      const slack = float === 'float64' ? 1e-12 : 1e-6;
      assert.ok(
        perPosition.every((value) => value >= -slack && value <= boundOf(divergence) + slack),
        `${perPosition}`,
      );
      assert.ok(gradient.every(Number.isFinite), float);
    }
  });

  test(`${nameOf(divergence)} on top-k never exceeds that on full labels, and is it where k is all but one`, async () => {
    const full = await onFull(TEACHER, STUDENT, divergence, 2);
    const whole = await onTopK(TEACHER, STUDENT, divergence, { k: V - 1, temperature: 2 });
    expectClose(whole.perPosition, full.perPosition, { absolute: 1e-12, where: 'loss' });
    expectClose(whole.gradient, full.gradient, { absolute: 1e-12, where: 'gradient' });
    for (const k of [1, 3, 7]) {
      const lumped = await onTopK(TEACHER, STUDENT, divergence, { k, temperature: 2 });
      lumped.perPosition.forEach((value, n) => {
        assert.ok(value >= 0 && value <= full.perPosition[n]! + 1e-12, `k ${k}, position ${n}`);
      });
    }
    const bucket = await onTopK(TEACHER, TEACHER, divergence, { k: 3, temperature: 2, tail: 'bucket' });
    expectClose(bucket.perPosition, new Float64Array(6), { absolute: 1e-14, where: 'a bucket at equality' });
  });

  for (const tail of ['tail', 'bucket', 'none'] as const) {
    test(`gradient check, ${nameOf(divergence)}, ${tail === 'none' ? 'full labels' : `top-k with ${tail}`}`, async () => {
      const [temperature, k] = [2, 4];
      const teacher = TEACHER.slice(0, 2 * V);
      const error = await gradientError(engine, {
        inputs: [{ shape: [2, V] }],
        build: (g, [student]) => {
          const t = g.scalar(temperature);
          const logprobs = g.logSoftmax(g.mul(student!, g.reciprocal(t)), 1);
          if (tail === 'none') {
            const constant = g.logSoftmax(g.scale(g.constant(teacher, 'float64', [2, V]), 1 / temperature), 1);
            return [emitDivergence(g, divergence, { teacher: constant, student: logprobs })];
          }
          const arrays = topKOf(teacher, k, tail === 'tail' ? temperature : 1);
          const data = (name: string) => arrays.get(`teacher.${name}`)!.data as Float64Array;
          const topk = {
            ids: g.constant(arrays.get('teacher.topk_ids')!.data as BigInt64Array, 'int64', [2, k]),
            logprobs: g.constant(data('topk_logprobs'), 'float64', [2, k]),
            tailLogprob: g.constant(data('tail_logprob'), 'float64', [2]),
          };
          return [emitDivergence(g, divergence, emitTopKDistributions(g, student!, topk, { tail, temperature: t }))];
        },
      });
      assert.ok(error < 1e-8, `largest error ${error}`);
    });
  }
}

test('limits: skew 0 is forward KL; a small and a large beta, each over its share, are forward and reverse KL', async () => {
  const forward = await onFull(TEACHER, STUDENT, KL, 2);
  const reverse = await onFull(TEACHER, STUDENT, { kind: 'reverse-kl' }, 2);
  const unskewed = await onFull(TEACHER, STUDENT, { kind: 'skew-kl', skew: 0 }, 2);
  assert.deepEqual(unskewed, forward);
  const close = { absolute: 1e-4, where: 'limit' };
  const slightly = await onFull(TEACHER, STUDENT, { kind: 'skew-kl', skew: 1e-6 }, 2);
  expectClose(slightly.perPosition, forward.perPosition, close);
  for (const [beta, share, wanted] of [
    [1e-6, 1e-6, forward],
    [1 - 1e-6, 1e-6, reverse],
  ] as const) {
    const { perPosition, gradient } = await onFull(TEACHER, STUDENT, { kind: 'jensen-shannon', beta }, 2);
    expectClose(
      perPosition.map((one) => one / share),
      wanted.perPosition,
      close,
    );
    expectClose(
      gradient.map((one) => one / share),
      wanted.gradient,
      close,
    );
  }
});

test('a tail that was lost to rounding makes no divergence infinite', async () => {
  const teacher = makeLogits(3, 1, 1).map((z, id) => (id < 3 ? z : z - 1000));
  const student = makeLogits(8, 1, 1);
  for (const divergence of ALL) {
    const { perPosition, gradient } = await onTopK(teacher, student, divergence, { k: 3, temperature: 1 });
    const q = logSoftmaxAt(student, 1).map(Math.exp);
    const p = logSoftmaxAt(teacher, 1).map(Math.exp);
    const lump = (of: Float64Array, tail: number) => Float64Array.of(of[0]!, of[1]!, of[2]!, tail);
    const lost = divergence.kind === 'reverse-kl' ? Math.exp(LOST_TAIL_LOGPROB) : 0;
    const outside = q.slice(3).reduce((a, b) => a + b);
    expectClose(perPosition, [define(divergence, lump(p, lost), lump(q, outside))], {
      absolute: 1e-11,
      where: nameOf(divergence),
    });
    assert.ok(gradient.every((one) => Math.abs(one) < 20));
  }
});

test('labels that are not whole distributions on both sides take the forward KL alone', () => {
  const topk = (tail: 'tail' | 'bucket' | 'renormalise' | 'renormalise-both'): SoftLabels => ({
    ...{ kind: 'topk', k: 3, isWhole: false },
    tail,
  });
  for (const divergence of ALL) {
    for (const labels of [
      { kind: 'full', teacherHidden: 2 } as const,
      topk('tail'),
      topk('bucket'),
      topk('renormalise-both'),
    ])
      assert.equal(explainUnsoundDivergence(divergence, labels), undefined);
    for (const labels of [{ kind: 'sampled' } as const, topk('renormalise')])
      assert.equal(explainUnsoundDivergence(divergence, labels) === undefined, divergence.kind === 'forward-kl');
  }
});

test('the reverse KL on a renormalised teacher is below zero for a student elsewhere: why it is refused', async () => {
  const g = new GraphBuilder('renormalised');
  const logits = g.floatInput('student', [1, 3]);
  const topk = {
    ids: g.constant(BigInt64Array.of(0n), 'int64', [1, 1]),
    logprobs: g.constant(Float32Array.of(0), 'float32', [1, 1]),
  };
  const distributions = emitTopKDistributions(g, logits, topk, { tail: 'renormalise', temperature: g.scalar(1) });
  g.output('loss', emitDivergence(g, { kind: 'reverse-kl' }, distributions));
  const program = await engine.compile(g);
  const loss = engine.allocate('float32', [1]);
  const student = engine.upload(Float32Array.of(0, 0, 0), 'float32', [1, 3]);
  await engine.run([{ kind: 'run', program, inputs: { student }, outputs: { loss } }]);
  assert.ok(Number((await engine.download(loss))[0]) < -0.3);
});

test('the forward KL with its gradient in closed form is the one of both distributions, even where the teacher lacks mass', async () => {
  const temperature = 2;
  for (const missing of [0, 0.1]) {
    const build = (g: GraphBuilder, student: Value, closed: boolean) => {
      const t = g.scalar(temperature);
      const whole = g.logSoftmax(g.scale(g.constant(TEACHER.slice(0, 2 * V), 'float64', [2, V]), 1 / temperature), 1);
      const teacher = g.add(whole, g.scalar(Math.log1p(-missing)));
      if (closed) return emitForwardKl(g, teacher, student, t);
      return emitDivergence(g, KL, { teacher, student: g.logSoftmax(g.mul(student, g.reciprocal(t)), 1) });
    };
    const inputs = [{ shape: [2, V] }];
    const error = await gradientError(engine, { inputs, build: (g, [student]) => [build(g, student!, true)] });
    assert.ok(error < 1e-8, `relative error ${error}`);
    const both: GradientCase = {
      inputs,
      build: (g, [student]) => [g.sub(build(g, student!, true), build(g, student!, false))],
    };
    assert.ok((await gradientError(engine, both)) < 1e-8, 'the values differ');
  }
});
