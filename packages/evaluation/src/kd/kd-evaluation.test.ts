import assert from 'node:assert/strict';
import { join } from 'node:path';
import { loadDecoder } from '@stillhouse/model-runner';
import type { RefineMode } from '@stillhouse/objectives';
import { openEngine } from '@stillhouse/runtime';
import { openCache } from '@stillhouse/teacher-cache';
import { expectClose, makeTemporaryFolder } from '@stillhouse/testing';
import { afterAll, type TestContext, test } from 'vitest';
import { evaluateKd, type KdFigures, resolveKdLabels, selectKdRows } from '../index.ts';
import {
  logSoftmax,
  readTinyRows,
  type TinyCacheOptions,
  type TinyRow,
  writeTinyCache,
} from '../testing/tiny-cache.ts';
import { GOLDEN, VOCAB_SIZE, writeTinyTokenizer } from '../testing/tiny-models.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());
const rows = await readTinyRows(engine);

interface Options extends Omit<TinyCacheOptions, 'tokenizer'> {
  readonly refine?: RefineMode;
  readonly model?: string;
  readonly asked?: readonly number[];
  readonly batchSize?: number;
  readonly chunkPositions?: number;
}

/** Writes a cache and evaluates a model on it, through everything but files of results. */
async function evaluate(t: TestContext, options: Options) {
  const {
    model: name = 'qwen2-tiny',
    asked = [1, 2],
    batchSize = 8,
    chunkPositions = 128,
    refine,
    ...labels
  } = options;
  const folder = await makeTemporaryFolder(t);
  await writeTinyTokenizer(folder);
  const cache = await openCache(await writeTinyCache(join(folder, 'cache'), rows, { ...labels, tokenizer: folder }));
  t.onTestFinished(() => cache.close());
  const model = await loadDecoder(engine, join(GOLDEN, name));
  const resolved = resolveKdLabels(cache.description, model.config, {
    temperatures: asked,
    where: cache.folder,
    ...(refine === undefined ? {} : { refine }),
  });
  const selected = await selectKdRows(cache, model.config, resolved.vocabSize, { split: undefined, limit: undefined });
  const before = (await engine.memory()).allocatedBytes;
  const told: number[] = [];
  const figures = await evaluateKd(engine, model, cache, {
    labels: resolved,
    temperatures: asked,
    rows: selected,
    batchSize,
    chunkPositions,
    onProgress: (done) => told.push(done.rows),
  });
  assert.equal((await engine.memory()).allocatedBytes, before, 'an evaluation must give its memory back');
  assert.equal(told.at(-1), rows.length);
  model.free();
  return { figures, labels: resolved };
}

const bestId = (logits: Float64Array) => logits.reduce((best, logit, id) => (logit > logits[best]! ? id : best), 0);

/** KL(teacher‖student) at T over the entries that `merge` makes of a distribution; the identity for all of them. */
function divergence(teacher: Float64Array, student: Float64Array, temperature: number, k?: number): number {
  const [p, q] = [logSoftmax(teacher, temperature).map(Math.exp), logSoftmax(student, temperature).map(Math.exp)];
  const ids = [...p.keys()].sort((a, b) => p[b]! - p[a]!);
  const kept = ids.slice(0, k ?? ids.length);
  const term = (a: number, b: number) => (a === 0 ? 0 : a * Math.log(a / b));
  const inside = kept.reduce((sum, id) => sum + term(p[id]!, q[id]!), 0);
  const mass = (of: Float64Array) => ids.slice(kept.length).reduce((sum, id) => sum + of[id]!, 0);
  return inside + term(mass(p), mass(q));
}

/** What an evaluation must give, from the float64 logits of both models. */
function expected(temperatures: readonly number[], k?: number) {
  const perRow = (value: (row: TinyRow, n: number) => number) =>
    rows.map((row) => row.positions.map((_, n) => value(row, n)));
  const mean = (values: readonly (readonly number[])[]) => values.flat().reduce((a, b) => a + b) / values.flat().length;
  const error = (values: readonly (readonly number[])[]) => {
    const average = mean(values);
    const residuals = values.map((row) => row.reduce((sum, value) => sum + value - average, 0));
    const squares = residuals.reduce((sum, residual) => sum + residual ** 2, 0);
    return Math.sqrt((rows.length / (rows.length - 1)) * squares) / values.flat().length;
  };
  const target = (row: TinyRow, n: number) => row.inputIds[row.positions[n]! + 1]!;
  const nll = perRow((row, n) => -logSoftmax(row.studentLogits[n]!, 1)[target(row, n)]!);
  const agrees = perRow((row, n) => Number(bestId(row.studentLogits[n]!) === bestId(row.teacherLogits[n]!)));
  const kl = temperatures.map((t) =>
    perRow((row, n) => divergence(row.teacherLogits[n]!, row.studentLogits[n]!, t, k)),
  );
  return {
    values: [mean(nll), Math.exp(mean(nll)), mean(agrees), ...kl.map(mean)],
    errors: [error(nll), error(agrees), ...kl.map(error)],
  };
}

function valuesOf({ ce, perplexity, top1Agreement, kl, standardErrors }: KdFigures, temperatures: readonly number[]) {
  const errors = temperatures.map((temperature) => standardErrors.kl[temperature]!);
  return {
    values: [ce, perplexity, top1Agreement, ...temperatures.map((temperature) => kl[temperature]!)],
    errors: [standardErrors.ce!, standardErrors.top1Agreement!, ...errors],
  };
}

function expectFigures(figures: KdFigures, temperatures: readonly number[], k?: number): void {
  const [ours, wanted] = [valuesOf(figures, temperatures), expected(temperatures, k)];
  expectClose(ours.values, wanted.values, { absolute: 2e-5, relative: 2e-5, where: 'figures' });
  expectClose(ours.errors, wanted.errors, { absolute: 2e-5, relative: 2e-5, where: 'standard errors' });
}

test('full labels give the KL of the live teacher, at any temperature', async (t) => {
  const { figures, labels } = await evaluate(t, { hidden: 'float32', asked: [1, 2, 3.5] });
  assert.equal(labels.soft.kind, 'full');
  expectFigures(figures, [1, 2, 3.5]);
  assert.equal(figures.rows, rows.length);
  assert.equal(
    figures.targetTokens,
    rows.reduce((sum, { positions }) => sum + positions.length, 0),
  );
  assert.equal(
    figures.tokens,
    rows.reduce((sum, { inputIds }) => sum + inputIds.length, 0),
  );
});

test('batches and chunks change nothing', async (t) => {
  const one = await evaluate(t, { hidden: 'float32', batchSize: 1, chunkPositions: 1 });
  const other = await evaluate(t, { hidden: 'float32', batchSize: 2, chunkPositions: 5 });
  expectFigures(one.figures, [1, 2]);
  expectFigures(other.figures, [1, 2]);
});

test('top-k labels give the KL with the exact mass outside', async (t) => {
  const { figures, labels } = await evaluate(t, { topk: 16, chunkPositions: 7 });
  assert.equal(labels.soft.kind, 'topk');
  expectFigures(figures, [1, 2], 16);
  const full = expected([1, 2]).values.slice(3);
  assert.ok(figures.kl['1']! < full[0]! && figures.kl['2']! < full[1]!, 'never above the whole KL');
});

test('all ids as top-k labels are the whole distribution', async (t) => {
  const { figures } = await evaluate(t, { topk: VOCAB_SIZE });
  expectFigures(figures, [1, 2]);
});

test('a cache with both is read as full; one in int8 comes close', async (t) => {
  const { figures, labels } = await evaluate(t, { topk: 4, hidden: 'int8', refine: 'never' });
  assert.equal(labels.soft.kind, 'full');
  assert.match(labels.detail, /int8/);
  const [ours, wanted] = [valuesOf(figures, [1, 2]), expected([1, 2])];
  // Cross-entropy and agreement do not see the quantised states.
  expectClose(ours.values.slice(0, 3), wanted.values.slice(0, 3), { absolute: 2e-5, relative: 2e-5, where: 'exact' });
  expectClose(ours.values.slice(3), wanted.values.slice(3), { relative: 0.03, where: 'KL from int8' });
});

test('states in int8 refined by top-k labels come closer, at any temperature', async (t) => {
  const asked = [1, 2, 3.5];
  const plain = await evaluate(t, { topk: 16, hidden: 'int8', asked, refine: 'never' });
  const refined = await evaluate(t, { topk: 16, hidden: 'int8', asked, chunkPositions: 7 });
  assert.match(refined.labels.detail, /int8.*head from top-16/);
  const wanted = valuesOf(refined.figures, asked).values.slice(0, 3).concat(expected(asked).values.slice(3));
  const offBy = ({ figures }: typeof plain) =>
    valuesOf(figures, asked).values.map((one, i) => Math.abs(one - wanted[i]!));
  const [near, far] = [offBy(refined).slice(3), offBy(plain).slice(3)];
  assert.ok(Math.max(...near) < Math.max(...far), `off by ${near} refined, by ${far} alone`);
  expectFigures((await evaluate(t, { topk: 16, hidden: 'float32', asked, refine: 'always' })).figures, asked);
});

test('the teacher on its own cache has no divergence and always agrees', async (t) => {
  for (const labels of [{ topk: 16 }, { hidden: 'float32' }] as const) {
    const { figures } = await evaluate(t, { ...labels, model: 'qwen2-tiny-untied' });
    assert.equal(figures.top1Agreement, 1);
    expectClose([figures.kl['1']!, figures.kl['2']!], [0, 0], { absolute: 1e-5, where: 'KL' });
  }
});

test("padding of the teacher's output matrix takes no part", async (t) => {
  const { figures, labels } = await evaluate(t, { hidden: 'float32', headPadding: 24 });
  assert.equal(labels.vocabSize, VOCAB_SIZE);
  expectFigures(figures, [1, 2]);
});
