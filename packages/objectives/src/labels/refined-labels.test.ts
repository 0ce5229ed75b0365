import assert from 'node:assert/strict';
import { gradientError } from '@stillhouse/gradient-check';
import { openEngine } from '@stillhouse/runtime';
import { expectClose, randomNormals } from '@stillhouse/testing';
import { afterAll, test } from 'vitest';
import {
  ABSENT_LOGPROB,
  emitDivergence,
  emitRefinedTeacher,
  type LabelArray,
  type RefinementNormaliser,
  type SoftLabels,
} from '../index.ts';
import { computeSoftLoss, floats, ids, logSoftmaxAt } from '../testing/soft-loss.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

const V = 40;
const D = 6;

interface Teacher {
  readonly hidden: Float64Array;
  readonly head: Float64Array;
  /** One [V] a position. */
  readonly logits: readonly Float64Array[];
  readonly student: Float64Array;
}

/** A teacher of some positions; `sharpness` scales its logits. */
function makeTeacher(positions: number, { seed = 3, sharpness = 1.5 } = {}): Teacher {
  const random = randomNormals(seed);
  const draw = (count: number, scale = 1) => Float64Array.from({ length: count }, () => scale * random());
  const [hidden, head, student] = [draw(positions * D, sharpness), draw(V * D), draw(positions * V, 2)];
  const logits = Array.from({ length: positions }, (_, n) =>
    Float64Array.from({ length: V }, (_, id) => {
      let sum = 0;
      for (let i = 0; i < D; i++) sum += head[id * D + i]! * hidden[n * D + i]!;
      return sum;
    }),
  );
  return { hidden, head, logits, student };
}

/** The teacher's `count(n)` best ids, padded to k entries. */
function refine(
  { logits, hidden }: Pick<Teacher, 'logits' | 'hidden'>,
  k: number,
  normaliser: RefinementNormaliser,
  temperature: number,
  count: (position: number) => number = () => k,
): { readonly labels: SoftLabels; readonly teacher: ReadonlyMap<string, LabelArray> } {
  const at = normaliser === 'stored' ? temperature : 1;
  const entries = logits.map((one, n) => {
    const logprobs = logSoftmaxAt(one, at);
    const best = [...logprobs.keys()].sort((a, b) => logprobs[b]! - logprobs[a]!);
    const kept = best.slice(0, count(n));
    const outside = best.slice(count(n)).reduce((sum, id) => sum + Math.exp(logprobs[id]!), 0);
    const padding = k - kept.length;
    return {
      ids: [...kept, ...new Array<number>(padding).fill(kept[0]!)],
      logprobs: [...kept.map((id) => logprobs[id]!), ...new Array<number>(padding).fill(ABSENT_LOGPROB)],
      tail: outside > 0 ? Math.log(outside) : ABSENT_LOGPROB,
    };
  });
  return {
    labels: { kind: 'full', teacherHidden: D, refinement: { k, normaliser } },
    teacher: new Map([
      ['teacher.hidden', floats(hidden, D)],
      [
        'teacher.topk_ids',
        ids(
          entries.flatMap((one) => one.ids),
          k,
        ),
      ],
      [
        'teacher.topk_logprobs',
        floats(
          entries.flatMap((one) => one.logprobs),
          k,
        ),
      ],
      ['teacher.tail_logprob', floats(entries.map(({ tail }) => tail))],
    ]),
  };
}

/** The exact loss at each position and its gradient, from the teacher's own distribution. */
function exact({ logits, student }: Teacher, temperature: number) {
  const rows = logits.map((one, n) => {
    const p = logSoftmaxAt(one, temperature);
    const q = logSoftmaxAt(student.slice(n * V, (n + 1) * V), temperature);
    const loss = p.reduce((sum, log, id) => sum + Math.exp(log) * (log - q[id]!), 0);
    return { loss, gradient: q.map((log, id) => (Math.exp(log) - Math.exp(p[id]!)) / temperature) };
  });
  return { perPosition: rows.map(({ loss }) => loss), gradient: rows.flatMap(({ gradient }) => [...gradient]) };
}

const CASES: readonly [RefinementNormaliser, number][] = [
  ['stored', 1],
  ['stored', 2],
  ['computed', 1],
  ['computed', 3],
  ['computed', 0.5],
  ['computed', 50],
];

for (const [normaliser, temperature] of CASES) {
  const name = `${normaliser}, T = ${temperature}`;

  test(`with exact hidden states refined labels are full labels: ${name}`, async () => {
    const teacher = makeTeacher(5);
    const wanted = exact(teacher, temperature);
    // Few entries, one entry, all but one, all; positions with fewer entries than others.
    const counts: readonly [k: number, count?: (n: number) => number][] = [
      [6],
      [1],
      [V - 1],
      [V],
      [9, (n) => 1 + 2 * n],
      [V, (n) => V - n],
    ];
    for (const [k, count] of counts) {
      const { student, head } = teacher;
      const refined = refine(teacher, k, normaliser, temperature, count);
      const ours = await computeSoftLoss(engine, { ...refined, temperature, student, head, vocabSize: V });
      expectClose(ours.perPosition, wanted.perPosition, { absolute: 1e-9, where: `k ${k}, loss` });
      expectClose(ours.gradient, wanted.gradient, { absolute: 1e-9, where: `k ${k}, gradient` });
    }
  });

  test(`lossy hidden states leave the head exact: ${name}`, async () => {
    const teacher = makeTeacher(4);
    const noise = randomNormals(8);
    const lossy = { ...teacher, hidden: teacher.hidden.map((value) => value + 0.3 * noise()) };
    const { student, head } = teacher;
    const [k, vocabSize] = [5, V];
    const { gradient } = await computeSoftLoss(engine, {
      ...refine(lossy, k, normaliser, temperature),
      ...{ temperature, student, head, vocabSize },
    });
    const wanted = teacher.logits.flatMap((logits, n) => {
      // By the definition: exact head, tail of the shape of the lossy logits.
      const hidden = lossy.hidden.subarray(n * D, (n + 1) * D);
      const scores = Array.from({ length: V }, (_, id) =>
        hidden.reduce((sum, value, i) => sum + value * head[id * D + i]!, 0),
      );
      const p1 = logSoftmaxAt(logits, 1);
      const pT = logSoftmaxAt(logits, temperature);
      const best = new Set([...p1.keys()].sort((a, b) => p1[b]! - p1[a]!).slice(0, k));
      const outside = [...p1.keys()].filter((id) => !best.has(id));
      const sum = (of: readonly number[], value: (id: number) => number) =>
        of.reduce((total, id) => total + value(id), 0);
      const p = new Float64Array(V);
      if (normaliser === 'stored') {
        const mass = sum(outside, (id) => Math.exp(pT[id]!));
        const shape = sum(outside, (id) => Math.exp(scores[id]! / temperature));
        for (const id of best) p[id] = Math.exp(pT[id]!);
        for (const id of outside) p[id] = (mass * Math.exp(scores[id]! / temperature)) / shape;
      } else {
        const mass = sum(outside, (id) => Math.exp(p1[id]!));
        const shift = Math.log(mass / sum(outside, (id) => Math.exp(scores[id]!)));
        for (const id of best) p[id] = Math.exp(p1[id]! / temperature);
        for (const id of outside) p[id] = Math.exp((scores[id]! + shift) / temperature);
        const z = p.reduce((a, b) => a + b);
        for (const id of p.keys()) p[id]! /= z;
      }
      const q = logSoftmaxAt(student.slice(n * V, (n + 1) * V), temperature);
      return Array.from(q, (log, id) => (Math.exp(log) - p[id]!) / temperature);
    });
    expectClose(gradient, wanted, { absolute: 1e-10, where: 'gradient' });
  });

  test(`all ids refined need no hidden state: ${name}`, async () => {
    const teacher = makeTeacher(3);
    const blind = { ...teacher, hidden: new Float64Array(3 * D) };
    const { student, head } = teacher;
    for (const float of ['float64', 'float32'] as const) {
      const refined = refine(blind, V, normaliser, temperature);
      const ours = await computeSoftLoss(engine, { ...refined, temperature, student, head, vocabSize: V, float });
      const absolute = float === 'float64' ? 1e-9 : 3e-6;
      expectClose(ours.perPosition, exact(teacher, temperature).perPosition, { absolute, where: float });
    }
  });

  test(`a mass outside that is lost to rounding does no harm: ${name}`, async () => {
    const teacher = makeTeacher(4, { sharpness: 30 });
    const { student, head } = teacher;
    for (const float of ['float64', 'float32'] as const) {
      const { labels, teacher: arrays } = refine(teacher, 4, normaliser, temperature);
      const tails = arrays.get('teacher.tail_logprob')!.data as Float64Array;
      const lost = tails.map((tail) => (tail < Math.log(1e-5) ? ABSENT_LOGPROB : tail));
      if (temperature <= 3) assert.ok(lost.includes(ABSENT_LOGPROB), 'no position lost its tail');
      const teacherArrays = new Map(arrays).set('teacher.tail_logprob', floats(lost));
      const options = { temperature, student, head, vocabSize: V, float };
      const ours = await computeSoftLoss(engine, { labels, teacher: teacherArrays, ...options });
      const wanted = exact(teacher, temperature);
      // `computed` takes the lost mass from the states, which are exact here; `stored` is without it.
      const absolute = normaliser === 'computed' && float === 'float64' ? 1e-9 : 3e-4;
      expectClose(ours.perPosition, wanted.perPosition, { absolute, relative: absolute, where: `${float}, loss` });
      expectClose(ours.gradient, wanted.gradient, { absolute, where: `${float}, gradient` });
    }
  });

  test(`gradient check, ${name}`, async () => {
    const teacher = makeTeacher(2);
    const { teacher: arrays } = refine(teacher, 5, normaliser, temperature, (n) => 5 - 2 * n);
    const error = await gradientError(engine, {
      inputs: [{ shape: [2, V] }],
      build: (g, [student]) => {
        const t = g.scalar(temperature);
        const constant = (label: string, shape: readonly number[]) =>
          g.constant(arrays.get(label)!.data as Float64Array, 'float64', shape);
        const logits = g.constant(Float64Array.from(teacher.logits.flatMap((one) => [...one])), 'float64', [2, V]);
        const topk = {
          ids: g.constant(arrays.get('teacher.topk_ids')!.data as BigInt64Array, 'int64', [2, 5]),
          logprobs: constant('teacher.topk_logprobs', [2, 5]),
          tailLogprob: constant('teacher.tail_logprob', [2]),
        };
        const distributions = {
          teacher: emitRefinedTeacher(g, logits, topk, { normaliser, temperature: t }),
          student: g.logSoftmax(g.mul(student!, g.reciprocal(t)), 1),
        };
        return [emitDivergence(g, { kind: 'forward-kl' }, distributions)];
      },
    });
    assert.ok(error < 1e-8, `largest error ${error}`);
  });
}
