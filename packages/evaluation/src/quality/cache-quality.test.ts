import assert from 'node:assert/strict';
import { access, mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { isStillhouseError } from '@stillhouse/errors';
import { type Engine, openEngine } from '@stillhouse/runtime';
import { resolveSettings } from '@stillhouse/settings';
import { expectClose, makeTemporaryFolder } from '@stillhouse/testing';
import { afterAll, beforeAll, type TestContext, test } from 'vitest';
import { type CacheQuality, measureCacheQuality, QUALITY_SETTINGS } from '../index.ts';
import {
  logSoftmax,
  readTinyRows,
  type TinyCacheOptions,
  type TinyRow,
  writeTinyCache,
} from '../testing/tiny-cache.ts';
import { makeTinyModel } from '../testing/tiny-models.ts';

let engine: Engine;
let rows: readonly TinyRow[];
beforeAll(async () => {
  engine = await openEngine({ threads: 1 });
  rows = await readTinyRows(engine);
});
afterAll(() => engine.close());

/** A student, a teacher, and a cache of the teacher's labels. */
async function prepare(t: TestContext, labels: Partial<TinyCacheOptions>) {
  const folder = await makeTemporaryFolder(t);
  const paths = { student: join(folder, 'student'), teacher: join(folder, 'teacher'), cache: join(folder, 'cache') };
  await mkdir(paths.student);
  await mkdir(paths.teacher);
  await makeTinyModel(paths.student, 'qwen2-tiny');
  await makeTinyModel(paths.teacher, 'qwen2-tiny-untied');
  const { teacher } = paths;
  await writeTinyCache(paths.cache, rows, { temperatures: [1, 2, 4], tokenizer: teacher, teacher, ...labels });
  return paths;
}

const settingsOf = (given: Readonly<Record<string, unknown>>) =>
  resolveSettings(QUALITY_SETTINGS, { device: 'cpu', threads: 1, ...given });

const figures = ({ modes }: CacheQuality, mode: string, temperature: number) =>
  modes.find(({ name }) => name === mode)!.at[String(temperature)]!;

const positionsOf = (sample: readonly TinyRow[]) => sample.reduce((sum, { positions }) => sum + positions.length, 0);

test('a cache is held against its teacher, scored again, and the table is kept beside it', async (t) => {
  const paths = await prepare(t, { topk: 16, hidden: 'int8' });
  const stages: string[] = [];
  const plans: { readonly modes: readonly string[] }[] = [];
  const result = await measureCacheQuality(settingsOf(paths), {
    onPlan: (plan) => plans.push(plan),
    onStage: (stage) => stages.push(stage),
  });
  assert.deepEqual(stages, ['teacher', 'student', 'labels']);
  assert.deepEqual(plans[0]!.modes, ['full', 'full refined', 'topk tail', 'topk bucket', 'topk renormalise']);
  assert.equal(result.out, `${paths.cache}.quality.json`);
  assert.deepEqual(JSON.parse(await readFile(result.out!, 'utf8')), JSON.parse(JSON.stringify(result)));
  assert.equal(result.positions, positionsOf(rows));
  assert.equal(result.rows, rows.length);
  // From the float64 logits of both models, which the measurement has never seen.
  const mean = (value: (teacher: Float64Array, student: Float64Array, row: TinyRow, n: number) => number) =>
    rows.reduce(
      (sum, row) =>
        sum +
        row.positions.reduce((part, _, n) => part + value(row.teacherLogits[n]!, row.studentLogits[n]!, row, n), 0),
      0,
    ) / result.positions;
  const ce = mean((teacher, _, row, n) => -logSoftmax(teacher, 1)[row.inputIds[row.positions[n]! + 1]!]!);
  expectClose([result.teacherCe], [ce], { absolute: 2e-5, where: 'teacher CE' });
  for (const temperature of [1, 2, 4]) {
    const kl = mean((teacher, student) => {
      const [p, q] = [logSoftmax(teacher, temperature), logSoftmax(student, temperature)];
      return p.reduce((sum, log, id) => sum + Math.exp(log) * (log - q[id]!), 0);
    });
    const [full, refined, tail] = ['full', 'full refined', 'topk tail'].map((mode) =>
      figures(result, mode, temperature),
    );
    expectClose([full!.exactLoss], [kl], { absolute: 2e-5, where: `exact loss at T = ${temperature}` });
    assert.ok(full!.gradientError > 0 && full!.gradientError < 0.1);
    assert.ok(refined!.gradientError < full!.gradientError && refined!.gradientError < tail!.gradientError);
    assert.ok(refined!.gradientCosine > 0.999 && refined!.gradientCosine <= 1);
    assert.ok(tail!.loss <= kl + 1e-6, 'merging ids cannot raise a divergence');
  }
  const bytes = (mode: string) => result.modes.find(({ name }) => name === mode)!.bytesPerToken!;
  assert.ok(bytes('full') > 64, 'less than its numbers take');
  expectClose([bytes('full refined')], [bytes('full') + bytes('topk tail')], { absolute: 1e-9, where: 'bytes' });
  assert.ok(result.fixedBytes > 512 * 64 * 4);
});

test('exact states in a cache are their own reference, and say the same as the teacher', async (t) => {
  const paths = await prepare(t, { topk: 16, hidden: 'float32' });
  const { teacher: _, ...own } = paths;
  const out = join(paths.student, 'quality.json');
  const alone = await measureCacheQuality(settingsOf({ ...own, out, temperatures: [1, 3] }));
  const scored = await measureCacheQuality(settingsOf({ ...paths, out, temperatures: [1, 3] }));
  assert.match(alone.reference, /float32 hidden states/);
  assert.equal(alone.out, out);
  for (const temperature of [1, 3]) {
    for (const quality of [alone, scored]) {
      for (const mode of ['full', 'full refined']) {
        const { gradientError, gradientCosine, divergence, calibrationError } = figures(quality, mode, temperature);
        expectClose([gradientError, 1 - gradientCosine, divergence!, calibrationError], [0, 0, 0, 0], {
          absolute: 2e-5,
          where: `${quality.reference}, ${mode}, T = ${temperature}`,
        });
      }
    }
    const [a, b] = [alone, scored].map((quality) => figures(quality, 'topk bucket', temperature));
    expectClose(Object.values(a!).map(Number), Object.values(b!).map(Number), { absolute: 1e-4, where: 'bucket' });
  }
  assert.deepEqual(Object.keys(alone.modes.find(({ name }) => name === 'topk tail')!.at), ['1']);
});

test('a limit cuts the sample to so many positions, from rows that lie apart', async (t) => {
  const paths = await prepare(t, { hidden: 'float32' });
  const whole = await measureCacheQuality(settingsOf({ ...paths, chunkPositions: 3 }));
  const cut = await measureCacheQuality(settingsOf({ ...paths, positionsLimit: 3 }));
  assert.deepEqual([whole.positions, cut.positions], [positionsOf(rows), 3]);
  assert.ok(cut.rows < rows.length);
});

test('what cannot be measured is refused, and no table is written', async (t) => {
  const paths = await prepare(t, { topk: 8, hidden: 'int8' });
  const rowsOnly = await prepare(t, {});
  const { teacher: _, ...alone } = paths;
  const cases: readonly [code: string, given: Readonly<Record<string, unknown>>, message: RegExp][] = [
    ['REFERENCE_MISSING', alone, /--teacher DIR, or a cache with float32/],
    ['TEACHER_MISMATCH', { ...paths, teacher: paths.student }, /not the teacher of the cache, qwen2-tiny-untied/],
    ['LABELS_NOT_IN_CACHE', rowsOnly, /no soft labels at T = 1, 2, 4/],
    ['SETTING_MISSING', { cache: paths.cache }, /--student/],
    ['OUT_IS_FOLDER', { ...paths, out: paths.student }, /--out/],
  ];
  for (const [code, given, message] of cases) {
    await assert.rejects(measureCacheQuality(settingsOf(given)), (error) => {
      assert.ok(isStillhouseError(error, code), `${code}: ${error}`);
      assert.match(error.message, message);
      return true;
    });
    await assert.rejects(access(`${String(given.cache)}.quality.json`), code);
  }
});
