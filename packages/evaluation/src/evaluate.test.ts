import assert from 'node:assert/strict';
import { access, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { readModelConfig } from '@stillhouse/checkpoint';
import { isStillhouseError } from '@stillhouse/errors';
import { createGenerator, loadDecoder } from '@stillhouse/model-runner';
import { type Engine, openEngine } from '@stillhouse/runtime';
import { resolveSettings } from '@stillhouse/settings';
import { openCache } from '@stillhouse/teacher-cache';
import { expectClose, makeTemporaryFolder } from '@stillhouse/testing';
import { openTokenizer } from '@stillhouse/tokenizer';
import { afterAll, beforeAll, type TestContext, test } from 'vitest';
import {
  checkEvaluation,
  EVALUATION_SETTINGS,
  type ExactMatchResult,
  evaluateModel,
  type KdRecord,
  type KdResult,
  resolveKdLabels,
} from './index.ts';
import { readTinyRows, type TinyCacheOptions, type TinyRow, writeTinyCache } from './testing/tiny-cache.ts';
import { makeTinyModel, type TinyTokenizerOptions } from './testing/tiny-models.ts';

let engine: Engine;
let rows: readonly TinyRow[];
beforeAll(async () => {
  engine = await openEngine({ threads: 1 });
  rows = await readTinyRows(engine);
});
afterAll(() => engine.close());

interface Case {
  readonly config?: Readonly<Record<string, unknown>>;
  readonly tokenizer?: TinyTokenizerOptions | null;
  readonly cache?: Partial<TinyCacheOptions>;
}

/** A folder with a model and a cache of another model's labels, both with the same tokenizer unless told otherwise. */
async function prepare(t: TestContext, { config, tokenizer, cache }: Case = {}) {
  const folder = await makeTemporaryFolder(t);
  const paths = {
    folder,
    model: join(folder, 'model'),
    teacher: join(folder, 'teacher'),
    cache: join(folder, 'cache'),
    data: join(folder, 'questions.jsonl'),
    out: join(folder, 'results', 'result.json'),
  };
  await mkdir(paths.model);
  await mkdir(paths.teacher);
  await makeTinyModel(paths.model, 'qwen2-tiny', {
    ...(config === undefined ? {} : { config }),
    ...(tokenizer === undefined ? {} : { tokenizer }),
  });
  await makeTinyModel(paths.teacher, 'qwen2-tiny-untied');
  await writeTinyCache(paths.cache, rows, { topk: 8, tokenizer: paths.teacher, ...cache });
  return paths;
}

type Paths = Awaited<ReturnType<typeof prepare>>;

const settingsOf = (given: Readonly<Record<string, unknown>>) =>
  resolveSettings(EVALUATION_SETTINGS, { device: 'cpu', threads: 1, ...given });
const kdSettings = ({ model, cache, out }: Paths, more: object = {}) =>
  settingsOf({ task: 'kd', model, cache, out, ...more });
const questionSettings = ({ model, data, out }: Paths, more: object = {}) =>
  settingsOf({ task: 'exact-match', model, data, out, maxNewTokens: 6, ...more });

async function expectRefusal(settings: ReturnType<typeof settingsOf>, code: string, pattern = /./): Promise<void> {
  for (const run of [evaluateModel, checkEvaluation]) {
    await assert.rejects(run(settings), (error) => {
      assert.ok(isStillhouseError(error, code), String(error));
      assert.match(error.message, pattern);
      return true;
    });
  }
  if (settings.out !== undefined && code !== 'OUT_IS_FOLDER') await assert.rejects(access(settings.out));
}

const writeLines = (path: string, lines: readonly object[]) =>
  writeFile(path, lines.map((line) => JSON.stringify(line)).join('\n'));

test('kd writes its figures with the recipe and returns the same', async (t) => {
  const paths = await prepare(t, { cache: { hidden: 'float32' } });
  const plans: unknown[] = [];
  const progress: number[] = [];
  const result = (await evaluateModel(kdSettings(paths, { split: 'held-out' }), {
    onPlan: (plan) => plans.push(plan),
    onProgress: ({ done }) => progress.push(done),
  })) as KdResult;
  const heldOut = rows.filter(({ split }) => split === 'held-out');
  assert.deepEqual(JSON.parse(await readFile(paths.out, 'utf8')), JSON.parse(JSON.stringify(result)));
  assert.deepEqual(plans, [{ task: 'kd', total: heldOut.length }]);
  assert.deepEqual([progress[0], progress.at(-1)], [0, heldOut.length]);
  assert.equal(result.task, 'kd');
  assert.equal(result.rows, heldOut.length);
  assert.equal(await checkEvaluation(kdSettings(paths, { split: 'held-out' })), heldOut.length);
  // The whole is the mean of the rows by their tokens.
  assert.deepEqual(
    result.records.map(({ id }) => id),
    heldOut.map(({ id }) => id),
  );
  const whole = (of: (record: KdRecord) => number) =>
    result.records.reduce((sum, record) => sum + record.targetTokens * of(record), 0) / result.targetTokens;
  expectClose(
    [whole(({ kl }) => kl['2']!), whole(({ ce }) => ce), whole(({ top1Agreement }) => top1Agreement)],
    [result.kl['2']!, result.ce, result.top1Agreement],
    { relative: 1e-12, where: 'means of rows' },
  );
  assert.equal(result.labels, 'full');
  assert.match(result.cacheDigest, /^[0-9a-f]{64}$/);
  assert.deepEqual(Object.keys(result.kl), ['1', '2']);
  assert.equal(result.perplexity, Math.exp(result.ce));
  assert.ok(result.tokensPerSecond > 0 && result.elapsedMs > 0 && result.peakRssBytes > 0);
  assert.equal(result.recipe.split, 'held-out');
  assert.equal(result.recipe.batchSize, 8);
});

test('kd with a limit takes the first rows; one row has no standard error', async (t) => {
  const paths = await prepare(t);
  const result = (await evaluateModel(kdSettings(paths, { limit: 1 }))) as KdResult;
  assert.equal(result.rows, 1);
  assert.equal(result.targetTokens, rows[0]!.positions.length);
  assert.equal(result.labels, 'topk');
  assert.equal(result.standardErrors.ce, null);
});

test('exact match asks, generates to the end of the answer, and scores what was said', async (t) => {
  const paths = await prepare(t, { config: { eos_token_id: 2 } });
  const tokenizer = await openTokenizer(paths.model);
  const model = await loadDecoder(engine, paths.model);
  const generator = await createGenerator(engine, model);
  const asked = ['<user>How many eggs?<assistant>', 'Q: 1+1 A: ', '<system>Be brief.<user>And now?<assistant>'];
  const free = await generator.generateGreedy(
    asked.map((text) => tokenizer.encode(text)),
    { maxNewTokens: 6, stopIds: [] },
  );
  // The model ends its answers with whatever it says fourth to the first question.
  const stopId = free[0]!.ids[3]!;
  const texts = free.map(({ ids }) => {
    const end = ids.indexOf(stopId);
    return { text: tokenizer.decode(end < 0 ? ids : ids.slice(0, end)), isCut: end < 0 };
  });
  const numbersIn = (text: string) => text.match(/\d+/g);
  const lastNumber = (index: number) => numbersIn(texts[index]!.text)?.at(-1) ?? null;
  /** What counts: a number at the end of an answer that was cut off is none. */
  const prediction = (index: number) => (texts[index]!.isCut ? null : lastNumber(index));
  await writeFile(
    join(paths.model, 'config.json'),
    JSON.stringify({ ...JSON.parse(await readFile(join(paths.model, 'config.json'), 'utf8')), eos_token_id: stopId }),
  );
  await writeLines(paths.data, [
    { id: 'eggs', task: 'count', question: 'How many eggs?', answer: `#### ${lastNumber(0)}` },
    { prompt: 'Q: 1+1 A: ', answer: '-12345' },
    {
      messages: [
        { role: 'system', content: 'Be brief.' },
        { role: 'user', content: 'And now?' },
        { role: 'assistant', content: `So it is.\n#### ${lastNumber(2)}` },
      ],
    },
  ]);
  const progress: unknown[] = [];
  const result = (await evaluateModel(questionSettings(paths), {
    onProgress: ({ done, total, correct }) => progress.push([done, total, correct]),
  })) as ExactMatchResult;
  assert.deepEqual(JSON.parse(await readFile(paths.out, 'utf8')), JSON.parse(JSON.stringify(result)));
  assert.deepEqual(
    result.records.map(({ id, text, prediction, correct, finishedBy }) => ({
      id,
      text,
      prediction,
      correct,
      finishedBy,
    })),
    ['eggs', 'line-2', 'line-3'].map((id, i) => ({
      id,
      text: texts[i]!.text,
      prediction: prediction(i),
      correct: i !== 1 && prediction(i) !== null,
      finishedBy: texts[i]!.isCut ? 'length' : 'stop',
    })),
  );
  assert.equal(result.records[0]!.finishedBy, 'stop');
  assert.equal(result.records[0]!.task, 'count');
  assert.equal(result.records[1]!.answer, '-12345');
  assert.ok(texts[2]!.isCut && lastNumber(2) !== null, 'the case must hold the right number in an answer cut off');
  assert.equal(result.correct, 1);
  assert.equal(result.accuracy, 1 / 3);
  assert.ok(result.interval.low < 1 / 3 && result.interval.high > 1 / 3);
  assert.equal(result.truncated, texts.filter(({ isCut }) => isCut).length);
  assert.deepEqual(progress[0], [0, 3, 0]);
  assert.deepEqual(progress.at(-1), [3, 3, 1]);
});

test('a bare question to a model without a template stands as it is', async (t) => {
  const paths = await prepare(t, { tokenizer: { hasTemplate: false } });
  await writeLines(paths.data, [
    { question: 'Q: 1+1 A: ', answer: '2' },
    { prompt: 'Q: 1+1 A: ', answer: '2' },
    { question: 'left out by the limit', answer: '2' },
  ]);
  const { records } = (await evaluateModel(questionSettings(paths, { limit: 2 }))) as ExactMatchResult;
  assert.equal(records.length, 2);
  assert.equal(records[0]!.text, records[1]!.text);
});

test('settings that a task cannot do without, or cannot use, are named', async (t) => {
  const paths = await prepare(t);
  const { model, cache, data, out } = paths;
  await expectRefusal(settingsOf({ model, cache, out }), 'SETTING_MISSING', /--task/);
  await expectRefusal(settingsOf({ task: 'kd', cache, out }), 'SETTING_MISSING', /--model/);
  await expectRefusal(settingsOf({ task: 'kd', model, cache }), 'SETTING_MISSING', /--out/);
  await expectRefusal(settingsOf({ task: 'kd', model, data, out }), 'SETTING_MISSING', /--cache.*task kd/);
  await expectRefusal(settingsOf({ task: 'exact-match', model, out }), 'SETTING_MISSING', /--data.*exact-match/);
  await expectRefusal(questionSettings(paths, { split: 'test' }), 'SETTING_NOT_FOR_TASK', /--split test/);
  await expectRefusal(kdSettings(paths, { out: paths.folder }), 'OUT_IS_FOLDER');
  for (const wrong of [{ temperatures: [0] }, { temperatures: [] }, { limit: 0 }, { maxNewTokens: 0 }]) {
    assert.throws(
      () => settingsOf(wrong),
      (error) => isStillhouseError(error, 'SETTING_INVALID'),
    );
  }
});

test('labels that are not there are refused, a bucket never stands in', async (t) => {
  const paths = await prepare(t);
  const asked = kdSettings(paths, { temperatures: [1, 4] });
  await expectRefusal(asked, 'TEMPERATURE_NOT_IN_GRID', /temperatures among 1, 2, got 4/);
  const unknown = await prepare(t, { cache: { temperatures: [] } });
  await expectRefusal(kdSettings(unknown, { temperatures: [1, 2] }), 'TAIL_UNKNOWN', /expected temperature 1, got 2/);
  const [some, all] = [unknown, paths].map((at) => evaluateModel(kdSettings(at, { temperatures: [1] })));
  assert.deepEqual(((await some) as KdResult).kl, ((await all) as KdResult).kl);
  const bare = await prepare(t, { cache: { topk: undefined } as unknown as TinyCacheOptions });
  await expectRefusal(kdSettings(bare), 'LABELS_NOT_IN_CACHE');
});

test('rows that cannot be evaluated are refused', async (t) => {
  const paths = await prepare(t);
  await expectRefusal(kdSettings(paths, { split: 'test' }), 'NO_EVALUATION_ROWS', /split test/);
  const short = await prepare(t, { config: { max_position_embeddings: 8 } });
  await expectRefusal(kdSettings(short), 'ROW_TOO_LONG', /row row-0.*at most 8/);
});

test('refinement that a cache has no labels for is refused', async (t) => {
  const topk = await prepare(t);
  await expectRefusal(kdSettings(topk, { refine: 'always' }), 'SETTING_NOT_FOR_LABELS', /no full labels to refine/);
  const bare = await prepare(t, { cache: { topk: undefined, hidden: 'float32' } });
  await expectRefusal(kdSettings(bare, { refine: 'always' }), 'REFINEMENT_NOT_IN_CACHE', /no top-k labels/);
});

test('ids must mean the same to cache and model', async (t) => {
  const renamed = await prepare(t, { tokenizer: { rename: { 300: 'other' } } });
  await expectRefusal(kdSettings(renamed), 'TOKENIZER_MISMATCH', /300/);
  const without = await prepare(t, { tokenizer: null });
  await expectRefusal(kdSettings(without), 'MODEL_TOKENIZER_MISSING');
  const larger = await prepare(t, { cache: { realVocabSize: 600 } });
  await expectRefusal(kdSettings(larger), 'VOCABULARY_MISMATCH', /at least 600 ids, got 512/);
  const { description, close } = await openCache(larger.cache);
  await close();
  const unsaid = { ...description, teacher: { ...description.teacher!, vocabSize: 500 }, tokenizer: null };
  const model = await readModelConfig(larger.model);
  assert.throws(
    () => resolveKdLabels(unsaid, model, { temperatures: [1], where: 'CACHE' }),
    (error) => isStillhouseError(error, 'VOCABULARY_MISMATCH') && /does not say which ids are real/.test(error.message),
  );
});

test('questions that cannot be asked are refused', async (t) => {
  const paths = await prepare(t, { tokenizer: { hasTemplate: false }, config: { max_position_embeddings: 20 } });
  await writeLines(paths.data, [{ messages: [{ role: 'user', content: 'Hi' }], answer: '2' }]);
  await expectRefusal(questionSettings(paths), 'CHAT_TEMPLATE_MISSING', /question line-1/);
  await writeLines(paths.data, [{ id: 'long', prompt: 'x'.repeat(20), answer: '2' }]);
  await expectRefusal(questionSettings(paths), 'QUESTION_LONGER_THAN_CONTEXT', /question long.*at most 19.*got 20/);
  await rm(paths.data);
  await expectRefusal(questionSettings(paths), 'DATA_NOT_READABLE');
});
