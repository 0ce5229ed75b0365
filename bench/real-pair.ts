/**
 * Trains a real student from a real teacher's cache three ways for equal steps (full labels, top-k labels,
 * cross-entropy only) and measures each, and the untrained student, on held-out rows and questions, all through the
 * command line.
 *   node --import tsx bench/real-pair.ts TEACHER STUDENT GSM8K WORK [--rows 280] [--held-out 24] [--questions 200]
 *     [-- TRAIN FLAGS]
 * GSM8K is a folder with train.jsonl and test.jsonl. Flags after `--` go to all three runs of `stillhouse train`.
 * What WORK already holds is kept: a run that was interrupted goes on.
 */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import type { ExactMatchResult, KdResult } from '@stillhouse/evaluation';

const split = process.argv.indexOf('--', 2);
const own = process.argv.slice(2, split < 0 ? undefined : split);
const trainFlags = split < 0 ? [] : process.argv.slice(split + 1);
const { values, positionals } = parseArgs({
  args: own,
  allowPositionals: true,
  options: {
    rows: { type: 'string', default: '280' },
    'held-out': { type: 'string', default: '24' },
    questions: { type: 'string', default: '200' },
    'max-new-tokens': { type: 'string', default: '320' },
  },
});
if (positionals.length !== 4) {
  console.error(
    'usage: real-pair.ts TEACHER STUDENT GSM8K WORK [--rows N] [--held-out N] [--questions N] [-- TRAIN FLAGS]',
  );
  process.exit(2);
}
const [teacher, student, gsm8k, work] = positionals as [string, string, string, string];
const root = join(import.meta.dirname, '..');
const at = (name: string) => join(work, name);

function runScript(script: string, args: readonly string[]): void {
  console.error(`\n> ${script} ${args.join(' ')}`);
  const { status } = spawnSync(process.execPath, ['--import', 'tsx', join(root, script), ...args], {
    stdio: ['ignore', 2, 2],
  });
  if (status !== 0) throw new Error(`${script} ${args[0]} ended with status ${status}`);
}
const stillhouse = (...args: string[]) => runScript('packages/cli/bin/stillhouse.js', args);

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
  stillhouse('cache', 'build', '--teacher', teacher, '--data', at(`${name}.jsonl`), '--out', at(`${name}-cache`));
}
// Questions that are not among the held-out rows.
await writeLines('questions.jsonl', await readLines('test.jsonl', heldOutRows, Number(values.questions)));

const labels = { full: 'full', 'top-k': 'topk', 'hard labels': 'none' } as const;
const models = new Map([['untrained', student]]);
for (const [name, kind] of Object.entries(labels)) {
  const out = at(`student-${kind}`);
  models.set(name, out);
  if (existsSync(join(out, 'config.json'))) continue;
  const resume = existsSync(join(out, 'checkpoints')) ? ['--resume'] : [];
  stillhouse(
    'train',
    '--cache',
    at('train-cache'),
    '--student',
    student,
    '--out',
    out,
    '--labels',
    kind,
    ...trainFlags,
    ...resume,
  );
}

const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
const withError = (value: number, error: number | null | undefined) =>
  `${value.toFixed(4)} ± ${(1.96 * (error ?? Number.NaN)).toFixed(4)}`;
console.log('| student | KL, T = 2 | KL, T = 1 | CE | top-1 agreement | right answers |\n|---|---|---|---|---|---|');
for (const [name, model] of models) {
  const file = (task: string) => at(`${task}-${name.replace(' ', '-')}.json`);
  const kdFile = file('kd');
  if (!existsSync(kdFile))
    stillhouse('eval', '--task', 'kd', '--model', model, '--cache', at('held-out-cache'), '--out', kdFile);
  const answersFile = file('exact-match');
  if (!existsSync(answersFile)) {
    const flags = ['--data', at('questions.jsonl'), '--max-new-tokens', values['max-new-tokens'], '--batch-size', '50'];
    stillhouse('eval', '--task', 'exact-match', '--model', model, ...flags, '--out', answersFile);
  }
  const kd = JSON.parse(await readFile(kdFile, 'utf8')) as KdResult;
  const answers = JSON.parse(await readFile(answersFile, 'utf8')) as ExactMatchResult;
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
