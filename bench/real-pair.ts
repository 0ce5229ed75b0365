/**
 * Trains a real student from a real teacher's cache three ways for equal steps (full labels, top-k labels,
 * cross-entropy only) and measures each, and the untrained student, on held-out rows and questions.
 *   node --import tsx bench/real-pair.ts TEACHER STUDENT GSM8K WORK [--rows 280] [--held-out 24] [--questions 200]
 *     [--recipe TRAIN.json]
 * GSM8K is a folder with train.jsonl and test.jsonl. The settings of the recipe hold in all three runs. What WORK
 * already holds is kept: a run that was interrupted goes on.
 */
import { existsSync } from 'node:fs';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { EVALUATION_SETTINGS, type ExactMatchResult, evaluateModel, type KdResult } from '@stillhouse/evaluation';
import { readRecipeFile, resolveSettings } from '@stillhouse/settings';
import { TRAINING_SETTINGS, trainStudent } from '@stillhouse/student-trainer';
import { BUILD_SETTINGS, buildTeacherCache } from '@stillhouse/teacher-inference';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rows: { type: 'string', default: '280' },
    'held-out': { type: 'string', default: '24' },
    questions: { type: 'string', default: '200' },
    'max-new-tokens': { type: 'string', default: '320' },
    recipe: { type: 'string' },
  },
});
if (positionals.length !== 4) {
  console.error(
    'usage: real-pair.ts TEACHER STUDENT GSM8K WORK [--rows N] [--held-out N] [--questions N] [--recipe TRAIN.json]',
  );
  process.exit(2);
}
const [teacher, student, gsm8k, work] = positionals as [string, string, string, string];
const at = (name: string) => join(work, name);
const say = (line: string) => console.error(line);

async function readLines(source: string, skip: number, count: number): Promise<readonly string[]> {
  const lines = (await readFile(join(gsm8k, source), 'utf8')).split('\n').filter((line) => line !== '');
  return lines.slice(skip, skip + count);
}
const writeLines = (name: string, lines: readonly string[]) =>
  writeFile(at(name), lines.map((line) => `${line}\n`).join(''));

await mkdir(work, { recursive: true });
const heldOutRows = Number(values['held-out']);
for (const [name, source, count] of [
  ['train', 'train.jsonl', values.rows],
  ['held-out', 'test.jsonl', values['held-out']],
] as const) {
  if (!existsSync(at(`${name}.jsonl`))) await writeLines(`${name}.jsonl`, await readLines(source, 0, Number(count)));
  const files = { teacher, data: at(`${name}.jsonl`), out: at(`${name}-cache`) };
  say(`cache of ${files.data}`);
  await buildTeacherCache(resolveSettings(BUILD_SETTINGS, files));
}
// Questions that are not among the held-out rows.
await writeLines('questions.jsonl', await readLines('test.jsonl', heldOutRows, Number(values.questions)));

const recipe = values.recipe === undefined ? {} : await readRecipeFile(values.recipe);
const labels = { full: 'full', 'top-k': 'topk', 'hard labels': 'none' } as const;
const models = new Map([['untrained', student]]);
for (const [name, kind] of Object.entries(labels)) {
  const out = at(`student-${kind}`);
  models.set(name, out);
  if (existsSync(join(out, 'config.json'))) continue;
  say(`training: ${name}`);
  const files = { cache: at('train-cache'), student, out, resume: existsSync(join(out, 'checkpoints')) };
  await trainStudent(resolveSettings(TRAINING_SETTINGS, { ...recipe, ...files, labels: kind }));
}

/** An evaluation, or what one before has written. */
async function measure<Result>(
  settings: { readonly out: string } & Readonly<Record<string, unknown>>,
): Promise<Result> {
  const { out } = settings;
  if (!existsSync(out)) {
    say(`measuring ${out}`);
    await evaluateModel(resolveSettings(EVALUATION_SETTINGS, settings));
  }
  return JSON.parse(await readFile(out, 'utf8')) as Result;
}

const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
const withError = (value: number, error: number | null | undefined) =>
  `${value.toFixed(4)} ± ${(1.96 * (error ?? Number.NaN)).toFixed(4)}`;
console.log('| student | KL, T = 2 | KL, T = 1 | CE | top-1 agreement | right answers |\n|---|---|---|---|---|---|');
for (const [name, model] of models) {
  const file = (task: string) => at(`${task}-${name.replace(' ', '-')}.json`);
  const kd = await measure<KdResult>({ model, task: 'kd', cache: at('held-out-cache'), out: file('kd') });
  const answers = await measure<ExactMatchResult>({
    ...{ model, task: 'exact-match', data: at('questions.jsonl'), out: file('exact-match') },
    ...{ maxNewTokens: Number(values['max-new-tokens']), batchSize: 50 },
  });
  const { standardErrors: errors } = kd;
  const { low, high } = answers.interval;
  const cells = [
    name,
    withError(kd.kl['2']!, errors.kl['2']),
    withError(kd.kl['1']!, errors.kl['1']),
    withError(kd.ce, errors.ce),
    `${percent(kd.top1Agreement)} ± ${percent(1.96 * (errors.top1Agreement ?? Number.NaN))}`,
    `${percent(answers.accuracy)} (${percent(low)} to ${percent(high)})`,
  ];
  console.log(`| ${cells.join(' | ')} |`);
}
console.log('\n± and brackets: 95 % intervals.');
