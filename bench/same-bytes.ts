/**
 * Holds this checkout against another one: both run the same commands, and what they write must be the same to the bit.
 *
 *   node --import tsx bench/same-bytes.ts OTHER_CHECKOUT [WORD]     only the commands whose name contains the word
 *
 * OTHER_CHECKOUT has its dependencies installed. What is compared: each file of each cache, the trained weights and
 * their checkpoints, metrics and results as JSON without times and memory, and the ids that generation finds (as text).
 * Exits with 1 where anything differs.
 */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = fileURLToPath(new URL('..', import.meta.url));
const [otherArgument, word = ''] = process.argv.slice(2);
if (otherArgument === undefined) throw new Error('give the other checkout, with its dependencies installed');
const other = resolve(otherArgument);

/** Rows of all forms and of some lengths, of ids that all models have. */
const rows = Array.from({ length: 40 }, (_, row) => ({
  id: `row-${row}`,
  task: row % 2 === 0 ? 'math' : 'code',
  ...(row % 3 === 0 ? { answer: '42' } : {}),
  input_ids: Array.from({ length: 6 + ((row * 7) % 50) }, (_, i) => (row * 97 + i * i * 13 + 7) % 100),
  loss_mask: Array.from({ length: 6 + ((row * 7) % 50) }, (_, i) => (i >= 4 ? 1 : 0)),
}));
const longRow = { id: 'long', text: 'There are 5 classes of 8 kids and 34 kids are sick. '.repeat(40) };

const golden = ['qwen2-tiny', 'qwen2-tiny-untied', 'llama-tiny', 'llama3-rope-tiny'];
const build = (teacher: string, data: string, ...rest: readonly string[]) =>
  ['cache', 'build', '--teacher', teacher, '--data', data, '--device', 'cpu', '--threads', '2', ...rest] as const;
const train = (cache: string, student: string, ...rest: readonly string[]) =>
  [
    'train',
    '--cache',
    cache,
    '--student',
    student,
    '--steps',
    '10',
    '--device',
    'cpu',
    '--threads',
    '2',
    ...rest,
  ] as const;
const shape = ['--layers', '4', '--hidden', '80', '--heads', '5', '--kv-heads', '1', '--intermediate', '200'];

/** In order: later commands read what earlier ones wrote. The name is the folder or file that `--out` names. */
const commands: readonly { readonly name: string; readonly words: readonly string[] }[] = [
  ...golden.map((name) => ({ name: `cache-${name}`, words: build(name, 'rows.jsonl', '--rows-per-shard', '16') })),
  {
    name: 'cache-states',
    words: build('qwen2-tiny', 'rows.jsonl', '--hidden-layers', 'final,0,1,2,attention.1', '--hidden-dtype', 'f16'),
  },
  { name: 'cache-sampled', words: build('qwen2-tiny', 'rows.jsonl', '--labels', 'sampled', '--draws', '20') },
  {
    name: 'cache-top-p',
    words: build('llama-tiny', 'rows.jsonl', '--top-p', '0.9', '--logprob-dtype', 'u8', '--positions', 'all'),
  },
  {
    name: 'cache-plain',
    words: build('qwen2-tiny', 'rows.jsonl', '--packing', 'plain', '--hidden-dtype', 'int8-groups'),
  },
  {
    name: 'cache-demo',
    words: build('teacher', 'distil.jsonl', '--rows-per-shard', '512', '--hidden-layers', 'final,1,2,3,4'),
  },
  {
    name: 'cache-coded',
    words: build(
      'teacher',
      'distil.jsonl',
      '--limit',
      '600',
      '--hidden-dtype',
      'coded',
      '--hidden-bytes',
      '64',
      '--top-k',
      '16',
      '--logprob-dtype',
      'f16',
    ),
  },
  { name: 'cache-long', words: build('long-teacher', 'long.jsonl', '--max-length', '800') },
  { name: 'cache-held-out', words: build('teacher', 'test.jsonl', '--limit', '100') },
  { name: 'student', words: ['init-student', '--like', 'teacher', '--seed', '7', ...shape] },
  { name: 'long-student', words: ['init-student', '--like', 'long-teacher', '--seed', '7', ...shape] },
  { name: 'run-plain', words: train('cache-demo', 'student', '--batch-tokens', '1024', '--checkpoint-every', '5') },
  {
    name: 'run-top-k',
    words: train('cache-demo', 'student', '--labels', 'topk', '--accumulate', '3', '--alpha', '0.5'),
  },
  { name: 'run-states', words: train('cache-demo', 'student', '--hidden-weight', '10', '--hidden-layers', 'uniform') },
  {
    name: 'run-layers',
    words: train('cache-demo', 'student', '--train-layers', 'last-2,norm', '--optimiser-state', 'int8'),
  },
  { name: 'run-lora', words: train('cache-demo', 'student', '--lora-rank', '4', '--recompute', 'always') },
  { name: 'run-selected', words: train('cache-demo', 'student', '--select-tokens', '0.3', '--divergence', 'js') },
  {
    name: 'run-coded',
    words: train('cache-coded', 'student', '--eval-cache', 'cache-held-out', '--eval-every', '5', '--eval-limit', '20'),
  },
  {
    name: 'run-mixed',
    words: train('cache-demo,cache-coded', 'student', '--cache-weights', '2,1', '--save-dtype', 'bfloat16'),
  },
  {
    name: 'run-sampled',
    words: train('cache-sampled', 'qwen2-tiny', '--labels', 'sampled', '--temperature', '1', '--seed', '3'),
  },
  { name: 'run-long', words: train('cache-long', 'long-student', '--steps', '2', '--batch-tokens', '800') },
  {
    name: 'kd.json',
    words: ['eval', '--model', 'run-plain', '--task', 'kd', '--cache', 'cache-held-out', '--device', 'cpu'],
  },
  {
    name: 'kd-coded.json',
    words: [
      'eval',
      '--model',
      'run-plain',
      '--task',
      'kd',
      '--cache',
      'cache-coded',
      '--limit',
      '50',
      '--device',
      'cpu',
    ],
  },
  {
    name: 'answers.json',
    words: [
      'eval',
      '--model',
      'teacher',
      '--task',
      'exact-match',
      '--data',
      'test.jsonl',
      '--limit',
      '200',
      '--max-new-tokens',
      '48',
      '--batch-size',
      '16',
      '--device',
      'cpu',
    ],
  },
  {
    name: 'answers-student.json',
    words: [
      'eval',
      '--model',
      'run-states',
      '--task',
      'exact-match',
      '--data',
      'test.jsonl',
      '--limit',
      '60',
      '--max-new-tokens',
      '40',
      '--batch-size',
      '7',
      '--device',
      'cpu',
    ],
  },
  {
    name: 'quality.json',
    words: [
      'cache',
      'quality',
      'cache-coded',
      '--student',
      'student',
      '--teacher',
      'teacher',
      '--positions-limit',
      '200',
      '--device',
      'cpu',
    ],
  },
];

const scratch = mkdtempSync(join(tmpdir(), 'same-bytes-'));
const digest = (bytes: Buffer | string) => createHash('sha256').update(bytes).digest('hex');

/** Both checkouts start from the same inputs under the same names, since results name them. */
function prepare(folder: string): void {
  mkdirSync(folder);
  for (const name of golden) cpSync(join(here, 'test/golden', name), join(folder, name), { recursive: true });
  for (const name of ['teacher', 'distil.jsonl', 'test.jsonl']) {
    cpSync(join(here, 'data/demo', name), join(folder, name), { recursive: true });
  }
  // The demo's teacher with room for a row in several blocks of queries.
  cpSync(join(folder, 'teacher'), join(folder, 'long-teacher'), { recursive: true });
  const config = JSON.parse(readFileSync(join(folder, 'teacher', 'config.json'), 'utf8'));
  const longConfig = { ...config, max_position_embeddings: 2048 };
  writeFileSync(join(folder, 'long-teacher', 'config.json'), JSON.stringify(longConfig));
  const lines = (values: readonly object[]) => values.map((value) => `${JSON.stringify(value)}\n`).join('');
  writeFileSync(join(folder, 'rows.jsonl'), lines(rows));
  writeFileSync(join(folder, 'long.jsonl'), lines([longRow, { ...longRow, id: 'again' }]));
}

/** The run page shows times, and the checksums of a checkpoint are of a state that has some. */
const untold = ['run.html', 'checksums.json'];

/** Times, rates and memory differ from run to run. */
const varying = /(?:Ms|PerSecond|RssBytes|Seconds)$/i;
function withoutTimes(text: string): string {
  return JSON.stringify(JSON.parse(text, (key, value) => (varying.test(key) ? undefined : value)));
}

function read(path: string): string {
  const bytes = readFileSync(path);
  if (path.endsWith('.jsonl')) return digest(bytes.toString().trim().split('\n').map(withoutTimes).join('\n'));
  if (path.endsWith('.json')) return digest(withoutTimes(bytes.toString()));
  return digest(bytes);
}

/** sha256 of each file below a path, by its place. */
function digestsBelow(path: string): ReadonlyMap<string, string> {
  if (!statSync(path).isDirectory()) return new Map([['', read(path)]]);
  const files = readdirSync(path, { recursive: true, withFileTypes: true }).filter(
    (entry) => entry.isFile() && !untold.includes(entry.name),
  );
  const paths = files.map((entry) => join(entry.parentPath, entry.name)).sort();
  return new Map(paths.map((file) => [relative(path, file), read(file)]));
}

function run(checkout: string, folder: string, name: string, words: readonly string[]): void {
  const command = [join(checkout, 'packages/cli/bin/stillhouse.js'), ...words, '--out', name];
  const { status, stderr } = spawnSync(process.execPath, command, { cwd: folder, encoding: 'utf8' });
  if (status !== 0) throw new Error(`${checkout}: stillhouse ${words.join(' ')}\n${stderr}`);
}

const [ours, theirs] = [join(scratch, 'this'), join(scratch, 'other')];
let differences = 0;
try {
  for (const folder of [ours, theirs]) prepare(folder);
  for (const { name, words } of commands.filter((one) => one.name.includes(word))) {
    run(other, theirs, name, words);
    run(here, ours, name, words);
    const [mine, old] = [digestsBelow(join(ours, name)), digestsBelow(join(theirs, name))];
    const places = [...new Set([...mine.keys(), ...old.keys()])];
    const differing = places.filter((place) => mine.get(place) !== old.get(place));
    differences += differing.length;
    const whole = digest(places.map((place) => `${place} ${mine.get(place)}`).join('\n')).slice(0, 16);
    const verdict = differing.length === 0 ? `same, ${whole}` : `DIFFERENT: ${differing.join(', ')}`;
    console.log(`${name.padEnd(24)} ${String(places.length).padStart(3)} files  ${verdict}`);
  }
  console.log(differences === 0 ? 'all the same' : `${differences} files differ`);
} finally {
  if (differences === 0) rmSync(scratch, { recursive: true, force: true });
  else console.log(`kept for a look: ${scratch}`);
}
process.exitCode = differences === 0 ? 0 : 1;
