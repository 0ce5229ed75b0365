import assert from 'node:assert/strict';
import { openEngine } from '@stillhouse/runtime';
import type { CacheDescription, CachedRow, LabelledRow, SampledLabels, TopKLabels } from '@stillhouse/teacher-cache';
import { expectClose, randomNormals, randomUniforms } from '@stillhouse/testing';
import { afterAll, test } from 'vitest';
import { type LabelFigures, listLabelModes, measureLabelQuality } from '../index.ts';
import { logSoftmax } from '../testing/tiny-cache.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

const V = 24;
const [D, H, K, DRAWS] = [5, 4, 4, 20];
const TEMPERATURES = [1, 2, 3];
const GRID = [1, 2];

/** Three rows of labels as a cache has them, and both models' float64 logits at each position. */
function makeSample() {
  const [normal, uniform] = [randomNormals(11), randomUniforms(12)];
  const draw = (count: number, scale: number) => Float64Array.from({ length: count }, () => scale * normal());
  const [teacherHead, studentHead] = [draw(V * D, 1), draw(V * H, 1)];
  const multiply = (head: Float64Array, state: Float64Array) =>
    Float64Array.from({ length: V }, (_, id) =>
      state.reduce((sum, value, i) => sum + value * head[id * state.length + i]!, 0),
    );
  const rows = [3, 1, 4].map((count, index) => {
    const inputIds = Int32Array.from({ length: count + 1 }, () => Math.floor(uniform() * V));
    const row: CachedRow = {
      id: `row-${index}`,
      inputIds,
      lossMask: Uint8Array.from(inputIds, (_, t) => Number(t > 0)),
    };
    const states = Array.from({ length: count }, () => ({ teacher: draw(D, 1.5), student: draw(H, 1) }));
    const positions = Int32Array.from(states, (_, position) => position);
    return { row, positions, states };
  });
  const all = rows.flatMap(({ row, positions, states }) =>
    states.map((state, n) => ({
      teacher: multiply(teacherHead, state.teacher),
      student: multiply(studentHead, state.student),
      target: row.inputIds[positions[n]! + 1]!,
    })),
  );
  return { rows, all, teacherHead, studentHead, uniform };
}

type Sample = ReturnType<typeof makeSample>;

/** Labels of a row as a cache would store them: ragged top-k, hidden states with errors, draws. */
function labelRow({ all, rows, uniform }: Sample, index: number): LabelledRow {
  const { row, positions, states } = rows[index]!;
  const first = rows.slice(0, index).reduce((sum, one) => sum + one.positions.length, 0);
  const logprobs = positions.length === 0 ? [] : [...positions].map((_, n) => logSoftmax(all[first + n]!.teacher, 1));
  const best = logprobs.map((p, n) => [...p.keys()].sort((a, b) => p[b]! - p[a]!).slice(0, K - (n % 2)));
  const drawn = logprobs.map((p) => {
    const counts = new Map<number, number>();
    for (let i = 0; i < DRAWS; i++) {
      let left = uniform();
      let id = 0;
      for (; id < V - 1; id++) {
        left -= Math.exp(p[id]!);
        if (left < 0) break;
      }
      counts.set(id, (counts.get(id) ?? 0) + 1);
    }
    return [...counts];
  });
  const topk: TopKLabels = {
    counts: Int32Array.from(best, ({ length }) => length),
    ids: Int32Array.from(best.flat()),
    logprobs: Float32Array.from(best.flatMap((ids, n) => ids.map((id) => logprobs[n]![id]!))),
    logZ: Float32Array.from(
      logprobs.flatMap((p) => GRID.map((t) => Math.log(p.reduce((sum, one) => sum + Math.exp(one / t), 0)))),
    ),
  };
  const sampled: SampledLabels = {
    counts: Int32Array.from(drawn, ({ length }) => length),
    ids: Int32Array.from(drawn.flat(), ([id]) => id),
    draws: Uint16Array.from(drawn.flat(), ([, count]) => count),
  };
  // Rounded to eighths: an error as compressed states have.
  const values = Float32Array.from(states.flatMap(({ teacher }) => [...teacher].map((x) => Math.round(8 * x) / 8)));
  return {
    ...{ row, positions, topk, sampled },
    hidden: new Map([['final', { layer: 'final', dtype: 'float32', width: D, values }]]),
  };
}

const DESCRIPTION = {
  teacher: { hiddenSize: D, vocabSize: V },
  labels: {
    topk: { k: K, temperatures: GRID },
    sampled: { draws: DRAWS, temperature: 1 },
    hidden: { layers: ['final'], dtype: 'float32' },
    head: true,
  },
} as unknown as CacheDescription;

/** The target of a position's student gradient as numbers: the p̂ of each mode, from its definition. */
interface Expectation {
  /** [V] the gradient by the student's logits. */
  readonly gradient: Float64Array;
  readonly loss: number;
  readonly retained: number;
  /** [V] the labels' probabilities, completed by equal ones; undefined where others have none. */
  readonly completed?: Float64Array;
  readonly confidence: number;
  readonly truth: number;
}

function expect(sample: Sample, mode: string, labelled: readonly LabelledRow[], temperature: number) {
  const { rows, all, teacherHead } = sample;
  const results: (Expectation & { readonly p: Float64Array; readonly q: Float64Array; readonly target: number })[] = [];
  let n = 0;
  for (const [r, { positions }] of rows.entries()) {
    const { topk, sampled, hidden } = labelled[r]!;
    let [start, drawStart] = [0, 0];
    for (const at of positions.keys()) {
      const { teacher, student, target } = all[n++]!;
      const p = logSoftmax(teacher, temperature).map(Math.exp);
      const q = logSoftmax(student, temperature).map(Math.exp);
      const count = topk!.counts[at]!;
      const ids = [...topk!.ids.subarray(start, start + count)];
      const l = [...topk!.logprobs.subarray(start, start + count)];
      start += count;
      const drawCount = sampled!.counts[at]!;
      const drawnIds = [...sampled!.ids.subarray(drawStart, drawStart + drawCount)];
      const draws = [...sampled!.draws.subarray(drawStart, drawStart + drawCount)];
      drawStart += drawCount;
      const state = hidden!.get('final')!.values.subarray(at * D, (at + 1) * D);
      const scores = Float64Array.from({ length: V }, (_, id) =>
        [...state].reduce((sum, value, i) => sum + value * teacherHead[id * D + i]!, 0),
      );
      const logZ = temperature === 1 ? 0 : topk!.logZ[at * GRID.length + GRID.indexOf(temperature)]!;
      const others = [...p.keys()].filter((id) => !ids.includes(id));
      const sum = (of: readonly number[], value: (id: number) => number) =>
        of.reduce((total, id) => total + value(id), 0);
      results.push({
        ...{ p, q, target },
        ...expectPosition(),
      });

      function whole(label: Float64Array): Expectation {
        const best = label.indexOf(Math.max(...label));
        return {
          gradient: q.map((value, id) => (value - label[id]!) / temperature),
          loss: label.reduce((total, value, id) => total + value * Math.log(value / q[id]!), 0),
          retained: 1,
          completed: label,
          confidence: label[best]!,
          truth: p[best]!,
        };
      }

      function ofEntries(named: readonly number[], label: readonly number[]) {
        const best = label.indexOf(Math.max(...label));
        return { retained: sum(named, (id) => p[id]!), confidence: label[best]!, truth: p[named[best]!]! };
      }

      /** Labels w of some ids against the student with its full normaliser: d/dz of -Σ w log q. */
      function listed(named: readonly number[], label: readonly number[]): Expectation {
        const w = new Float64Array(V);
        named.forEach((id, i) => {
          w[id] = label[i]!;
        });
        return {
          gradient: q.map((value, id) => (value - w[id]!) / temperature),
          loss: named.reduce((total, id, i) => total + label[i]! * Math.log(label[i]! / q[id]!), 0),
          ...ofEntries(named, label),
        };
      }

      function expectPosition(): Expectation {
        switch (mode) {
          case 'full':
            return whole(logSoftmax(scores, temperature).map(Math.exp));
          case 'full refined': {
            const label = new Float64Array(V);
            if (GRID.includes(temperature)) {
              const tail = 1 - l.reduce((total, one) => total + Math.exp(one / temperature - logZ), 0);
              const shape = sum(others, (id) => Math.exp(scores[id]! / temperature));
              for (const id of others) label[id] = (tail * Math.exp(scores[id]! / temperature)) / shape;
              ids.forEach((id, i) => {
                label[id] = Math.exp(l[i]! / temperature - logZ);
              });
              return whole(label);
            }
            const tail = 1 - l.reduce((total, one) => total + Math.exp(one), 0);
            const shift = Math.log(tail / sum(others, (id) => Math.exp(scores[id]!)));
            for (const id of others) label[id] = Math.exp((scores[id]! + shift) / temperature);
            ids.forEach((id, i) => {
              label[id] = Math.exp(l[i]! / temperature);
            });
            const z = label.reduce((a, b) => a + b);
            return whole(label.map((value) => value / z));
          }
          case 'topk tail': {
            const label = l.map((one) => Math.exp(one / temperature - logZ));
            const tail = 1 - label.reduce((a, b) => a + b);
            const qTail = sum(others, (id) => q[id]!);
            const target = new Float64Array(V);
            ids.forEach((id, i) => {
              target[id] = label[i]!;
            });
            // Outside, the student's own shape: q_j - p_tail q_j / q_tail.
            for (const id of others) target[id] = (tail * q[id]!) / qTail;
            const completed = target.slice();
            for (const id of others) completed[id] = tail / others.length;
            return {
              gradient: q.map((value, id) => (value - target[id]!) / temperature),
              loss:
                ids.reduce((total, id, i) => total + label[i]! * Math.log(label[i]! / q[id]!), 0) +
                tail * Math.log(tail / qTail),
              completed,
              ...ofEntries(ids, label),
            };
          }
          case 'topk bucket': {
            const tail = 1 - l.reduce((total, one) => total + Math.exp(one), 0);
            const raw = [...l, Math.log(tail)].map((one) => Math.exp(one / temperature));
            const z = raw.reduce((a, b) => a + b);
            const label = raw.map((value) => value / z);
            const q1 = logSoftmax(student, 1).map(Math.exp);
            const q1Tail = sum(others, (id) => q1[id]!);
            const rawStudent = [...ids.map((id) => q1[id]!), q1Tail].map((value) => value ** (1 / temperature));
            const zStudent = rawStudent.reduce((a, b) => a + b);
            const entries = rawStudent.map((value) => value / zStudent);
            // By log q1 of an entry e: (entries_e - label_e) / T; log q1 of an id has d/dz = 1 - q1, of the tail q1_j /
            // tail.
            const byEntry = entries.map((value, e) => (value - label[e]!) / temperature);
            const gradient = new Float64Array(V);
            ids.forEach((id, e) => {
              gradient[id]! += byEntry[e]!;
            });
            for (const id of others) gradient[id]! += (byEntry.at(-1)! * q1[id]!) / q1Tail;
            const completed = new Float64Array(V);
            ids.forEach((id, e) => {
              completed[id] = label[e]!;
            });
            for (const id of others) completed[id] = label.at(-1)! / others.length;
            return {
              gradient,
              loss: label.reduce((total, value, e) => total + value * Math.log(value / entries[e]!), 0),
              completed,
              ...ofEntries(ids, label.slice(0, -1)),
            };
          }
          case 'topk renormalise': {
            const raw = l.map((one) => Math.exp(one / temperature));
            const z = raw.reduce((a, b) => a + b);
            return listed(
              ids,
              raw.map((value) => value / z),
            );
          }
          case 'sampled':
            return listed(
              drawnIds,
              draws.map((one) => one / DRAWS),
            );
          default:
            throw new Error(mode);
        }
      }
    }
  }
  return results;
}

/** The figures from their definitions. */
function summarise(results: ReturnType<typeof expect>, temperature: number): Omit<LabelFigures, never> {
  const mean = (value: (one: (typeof results)[number]) => number) =>
    results.reduce((total, one) => total + value(one), 0) / results.length;
  const dot = (a: Float64Array, b: Float64Array) => a.reduce((total, value, i) => total + value * b[i]!, 0);
  const pairs = results.map(({ p, q, gradient }) => {
    const exact = q.map((value, id) => (value - p[id]!) / temperature);
    const difference = gradient.map((value, id) => value - exact[id]!);
    const square = (x: Float64Array) => dot(x, x);
    return { gg: square(exact), hh: square(gradient), gh: dot(exact, gradient), dd: square(difference) };
  });
  const pool = (key: 'gg' | 'hh' | 'gh' | 'dd') => pairs.reduce((total, one) => total + one[key], 0);
  const meanPair = (value: (one: (typeof pairs)[number]) => number) =>
    pairs.reduce((total, one) => total + value(one), 0) / pairs.length;
  const isCompleted = results.every(({ completed }) => completed !== undefined);
  const bins = Array.from({ length: 15 }, (_, bin) =>
    results.filter(({ confidence }) => Math.min(14, Math.floor(confidence * 15)) === bin),
  );
  return {
    loss: mean(({ loss }) => loss),
    exactLoss: mean(({ p, q }) => p.reduce((total, value, id) => total + value * Math.log(value / q[id]!), 0)),
    retainedMass: mean(({ retained }) => retained),
    divergence: isCompleted
      ? mean(({ p, completed }) => p.reduce((total, value, id) => total + value * Math.log(value / completed![id]!), 0))
      : null,
    ce: isCompleted && temperature === 1 ? mean(({ completed, target }) => -Math.log(completed![target]!)) : null,
    gradientError: Math.sqrt(pool('dd') / pool('gg')),
    gradientCosine: pool('gh') / Math.sqrt(pool('gg') * pool('hh')),
    meanGradientError: meanPair(({ dd, gg }) => Math.sqrt(dd / gg)),
    meanGradientCosine: meanPair(({ gh, gg, hh }) => gh / Math.sqrt(gg * hh)),
    calibrationError: bins.reduce(
      (total, bin) =>
        bin.length === 0
          ? total
          : total +
            (bin.length / results.length) *
              Math.abs(
                bin.reduce((sum, one) => sum + one.confidence, 0) / bin.length -
                  bin.reduce((sum, one) => sum + one.truth, 0) / bin.length,
              ),
      0,
    ),
  };
}

for (const [float, chunkPositions] of [
  ['float64', 2],
  ['float32', 32],
] as const) {
  test(`every figure of every mode is what its definition says, ${float}`, async () => {
    const sample = makeSample();
    const labelled = sample.rows.map((_, index) => labelRow(sample, index));
    const make = (values: readonly number[] | Float64Array) =>
      float === 'float64' ? Float64Array.from(values) : Float32Array.from(values);
    const states = (key: 'teacher' | 'student') =>
      make(sample.rows.flatMap((row) => row.states.flatMap((state) => [...state[key]])));
    const modes = listLabelModes({
      description: DESCRIPTION,
      vocabSize: V,
      bytesPerToken: { topk: 30, 'hidden-final': 20 },
      readRow: (row) => Promise.resolve(labelled[row]!),
    });
    const teacherHead = engine.upload(make(sample.teacherHead), float, [V, D]);
    const studentHead = engine.upload(make(sample.studentHead), float, [V, H]);
    const before = (await engine.memory()).allocatedBytes;
    const told: number[] = [];
    const quality = await measureLabelQuality(
      engine,
      {
        rows: sample.rows,
        ...{ teacherStates: states('teacher'), teacherHead, studentStates: states('student'), studentHead },
      },
      modes,
      { temperatures: TEMPERATURES, chunkPositions, float, onProgress: (done) => told.push(done) },
    );
    assert.equal((await engine.memory()).allocatedBytes, before, 'memory was not given back');
    assert.deepEqual(told, [3, 4, 8]);
    assert.equal(quality.positions, 8);
    const absolute = float === 'float64' ? 1e-9 : 2e-5;
    const ce = sample.all.reduce((sum, { teacher, target }) => sum - logSoftmax(teacher, 1)[target]!, 0) / 8;
    expectClose([quality.teacherCe], [ce], { absolute, where: 'teacher CE' });
    assert.deepEqual(
      quality.modes.map(({ name, bytesPerToken, at }) => [name, bytesPerToken, Object.keys(at)]),
      [
        ['full', 20, ['1', '2', '3']],
        ['full refined', 50, ['1', '2', '3']],
        ['topk tail', 30, ['1', '2']],
        ['topk bucket', 30, ['1', '2', '3']],
        ['topk renormalise', 30, ['1', '2', '3']],
        ['sampled', null, ['1']],
      ],
    );
    for (const { name, at } of quality.modes) {
      for (const [temperature, figures] of Object.entries(at)) {
        const wanted = summarise(expect(sample, name, labelled, Number(temperature)), Number(temperature));
        for (const key of Object.keys(wanted) as (keyof LabelFigures)[]) {
          const where = `${name} at T = ${temperature}, ${key}`;
          if (wanted[key] === null) assert.equal(figures[key], null, where);
          else expectClose([figures[key]!], [wanted[key]], { absolute, relative: absolute, where });
        }
      }
    }
  });
}
