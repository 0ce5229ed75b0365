// Every wrong input through the command line: its own code and message, its exit status, and no output left behind.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { cp, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type NodeResult, runNode } from '@stillhouse/testing';
import { afterAll, beforeAll, test } from 'vitest';

const root = fileURLToPath(new URL('..', import.meta.url));
const bin = join(root, 'packages/cli/bin/stillhouse.js');
const golden = (name: string) => join(root, 'test/golden', name);
const teacher = golden('qwen2-tiny-untied');
const student = golden('qwen2-tiny');
// Two tiny tokenizers that share no meanings.
const tokenizers = { tinyBpe: join(root, 'test/tokenizer/tiny-bpe'), demo: join(root, 'data/demo/tokenizer') };

let work: string;
const at = (...parts: string[]) => join(work, ...parts);

/** Runs in the work folder, so that relative outputs show there. */
const stillhouse = (...args: string[]): Promise<NodeResult> => runNode([bin, ...args], { cwd: work });

async function succeed(...args: string[]): Promise<NodeResult> {
  const result = await stillhouse(...args);
  assert.equal(result.code, 0, `stillhouse ${args.join(' ')}\n${result.stderr}`);
  return result;
}

const writeLines = (name: string, lines: readonly string[]) =>
  writeFile(at(name), lines.map((line) => `${line}\n`).join(''));

/** Rows of ids below `vocabSize`, `length` tokens each, the second half to be predicted. */
const idRows = (count: number, length: number, vocabSize: number) =>
  Array.from({ length: count }, (_, row) =>
    JSON.stringify({
      id: `row-${row}`,
      input_ids: Array.from({ length }, (_, i) => (row * 131 + i * 37 + 5) % vocabSize),
      loss_mask: Array.from({ length }, (_, i) => (i * 2 >= length ? 1 : 0)),
    }),
  );

/** A model folder with random weights: the golden student's shape with some keys of its config changed. */
async function makeModel(name: string, changes: Readonly<Record<string, unknown>>, tokenizer?: string): Promise<void> {
  await makeConfigFolder(`${name}-like`, changes);
  if (tokenizer !== undefined) await cp(tokenizer, at(`${name}-like`), { recursive: true });
  await succeed('init-student', '--like', `${name}-like`, '--out', name);
}

async function makeConfigFolder(name: string, changes: Readonly<Record<string, unknown>>): Promise<void> {
  const config = JSON.parse(await readFile(join(student, 'config.json'), 'utf8')) as object;
  await mkdir(at(name));
  await writeFile(at(name, 'config.json'), JSON.stringify({ ...config, ...changes }));
}

/** Puts a NaN into the middle of a tensor of a model's float32 weights. */
async function poison(folder: string, tensor: string): Promise<void> {
  const path = join(folder, 'model.safetensors');
  const bytes = await readFile(path);
  const headerBytes = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.subarray(8, 8 + headerBytes).toString()) as Record<
    string,
    { readonly dtype: string; readonly data_offsets: readonly [number, number] }
  >;
  const { dtype, data_offsets: offsets } = header[tensor]!;
  const [elementBytes, notANumber] = dtype === 'F32' ? [4, [0, 0, 0xc0, 0x7f]] : [2, [0xc0, 0x7f]];
  const middle = Math.floor((offsets[0] + offsets[1]) / 2 / elementBytes) * elementBytes;
  bytes.set(notANumber, 8 + headerBytes + middle);
  await writeFile(path, bytes);
}

beforeAll(async () => {
  work = await mkdtemp(join(tmpdir(), 'stillhouse-wrong-inputs-'));
  await writeLines('rows.jsonl', idRows(6, 24, 512));
  await writeLines('text.jsonl', ['{"text":"Two and two make four."}', '{"text":"One more is five."}']);
  await succeed('cache', 'build', '--teacher', teacher, '--data', 'rows.jsonl', '--out', 'cache', '--top-k', '8');
});
afterAll(() => rm(work, { recursive: true, force: true }));

/** Every path in the work folder with its size. */
async function listWork(): Promise<readonly string[]> {
  const names = await readdir(work, { recursive: true });
  const listed = await Promise.all(names.map(async (name) => ({ name, entry: await stat(at(name)) })));
  return listed.map(({ name, entry }) => (entry.isFile() ? `${name} ${entry.size}` : name)).sort();
}

interface Refusal {
  readonly code: string;
  readonly message: RegExp;
  /** 2 where the command line alone shows the fault. */
  readonly exitCode?: 1 | 2;
}

async function expectRefusal(args: readonly string[], { code, message, exitCode = 1 }: Refusal): Promise<void> {
  const before = await listWork();
  const result = await stillhouse(...args, '--json');
  assert.equal(result.code, exitCode, result.stderr);
  const last = result.stderr.trimEnd().split('\n').at(-1)!;
  assert.match(last, message);
  assert.ok(last.startsWith('stillhouse: ') && last.endsWith(` [${code}]`), result.stderr);
  const { error } = JSON.parse(result.stdout) as { readonly error: { readonly code: string } };
  assert.equal(error.code, code);
  assert.deepEqual(await listWork(), before, 'nothing is left behind');
}

const build = (...args: string[]) => ['cache', 'build', '--out', 'new-cache', ...args];
const train = (...args: string[]) => ['train', '--out', 'new-student', '--steps', '2', ...args];
const kd = (...args: string[]) => ['eval', '--task', 'kd', '--out', 'new-result.json', ...args];

test('not a model folder', async () => {
  await mkdir(at('nothing'));
  for (const args of [
    build('--teacher', 'nothing', '--data', 'rows.jsonl'),
    train('--cache', 'cache', '--student', 'nothing'),
    kd('--cache', 'cache', '--model', 'nothing'),
    ['init-student', '--like', 'nothing', '--out', 'new-student'],
  ]) {
    await expectRefusal(args, { code: 'NOT_A_MODEL_FOLDER', message: /nothing: .*no config\.json/ });
  }
  await expectRefusal(train('--cache', 'cache', '--student', 'no-such'), {
    code: 'MODEL_FOLDER_MISSING',
    message: /no-such: there is no such folder/,
  });
});

test('architecture not supported', async () => {
  await makeConfigFolder('mamba', { model_type: 'mamba', architectures: ['MambaForCausalLM'] });
  for (const args of [
    build('--teacher', 'mamba', '--data', 'rows.jsonl'),
    train('--cache', 'cache', '--student', 'mamba'),
    kd('--cache', 'cache', '--model', 'mamba'),
  ]) {
    await expectRefusal(args, { code: 'ARCHITECTURE_NOT_SUPPORTED', message: /mamba.*qwen2/i });
  }
});

test("tokenizer of another family than the cache's", async () => {
  await makeModel('native', { vocab_size: 2003 }, tokenizers.tinyBpe);
  await makeModel('foreign', { vocab_size: 2003 }, tokenizers.demo);
  await succeed('cache', 'build', '--teacher', 'native', '--data', 'text.jsonl', '--top-k', '8', '--out', 'texts');
  for (const args of [
    train('--cache', 'texts', '--student', 'foreign'),
    kd('--cache', 'texts', '--model', 'foreign'),
  ]) {
    await expectRefusal(args, {
      code: 'TOKENIZER_MISMATCH',
      message: /texts.*foreign.*different families: \d+ of 2003 ids.*tokenizer of the teacher/,
    });
  }
});

test('vocabulary mismatch', async () => {
  for (const args of [
    train('--cache', 'cache', '--student', golden('llama-tiny')),
    kd('--cache', 'cache', '--model', golden('llama-tiny')),
  ]) {
    await expectRefusal(args, { code: 'VOCABULARY_MISMATCH', message: /512.*128/ });
  }
  await writeLines('beyond.jsonl', idRows(2, 24, 4000));
  await expectRefusal(build('--teacher', teacher, '--data', 'beyond.jsonl'), {
    code: 'TOKEN_ID_OUT_OF_RANGE',
    message: /beyond\.jsonl, line 1.*below 512/,
  });
});

test('empty data', async () => {
  await writeLines('empty.jsonl', ['', '  ']);
  await expectRefusal(build('--teacher', teacher, '--data', 'empty.jsonl'), {
    code: 'DATA_EMPTY',
    message: /empty\.jsonl: the file holds no rows/,
  });
  await expectRefusal(train('--cache', 'cache', '--student', student, '--split', 'test'), {
    code: 'NO_TRAINING_ROWS',
    message: /cache.*split test/,
  });
});

test('a row longer than the context', async () => {
  await writeLines('long.jsonl', [
    ...idRows(2, 24, 512),
    ...idRows(1, 300, 512).map((row) => row.replace('row-0', 'long')),
  ]);
  await expectRefusal(build('--teacher', teacher, '--data', 'long.jsonl'), {
    code: 'ROW_TOO_LONG',
    message: /long\.jsonl, line 3.*at most 256 tokens, got 300.*--max-length/,
  });
  await makeModel('narrow', { max_position_embeddings: 16 });
  for (const args of [train('--cache', 'cache', '--student', 'narrow'), kd('--cache', 'cache', '--model', 'narrow')]) {
    await expectRefusal(args, { code: 'ROW_TOO_LONG', message: /row-0.*at most 16 tokens, got 24/ });
  }
});

test('malformed JSON', async () => {
  await writeLines('malformed.jsonl', [...idRows(2, 24, 512), '{"input_ids": [1, 2,', ...idRows(1, 8, 512)]);
  await expectRefusal(build('--teacher', teacher, '--data', 'malformed.jsonl'), {
    code: 'DATA_NOT_JSON',
    message: /malformed\.jsonl, line 3: /,
  });
  await writeLines('questions.jsonl', ['{"question": "1 + 1?", "answer": "2"}', '{"question": ']);
  await expectRefusal(
    ['eval', '--task', 'exact-match', '--model', student, '--data', 'questions.jsonl', '--out', 'x.json'],
    {
      code: 'DATA_NOT_JSON',
      message: /questions\.jsonl, line 2: /,
    },
  );
});

for (const [user, source, command] of [
  ['teacher', teacher, (folder: string) => build('--teacher', folder, '--data', 'rows.jsonl')],
  ['student', student, (folder: string) => train('--cache', 'cache', '--student', folder)],
  ['evaluated model', student, (folder: string) => kd('--cache', 'cache', '--model', folder)],
] as const) {
  test(`NaN in weights of the ${user}`, async () => {
    const folder = `sick ${user}`;
    await mkdir(at(folder));
    for (const file of ['config.json', 'model.safetensors']) {
      // Not a copy of the file itself, which is read-only.
      await writeFile(at(folder, file), await readFile(join(source, file)));
    }
    await poison(at(folder), 'model.layers.1.mlp.up_proj.weight');
    await expectRefusal(command(folder), {
      code: 'WEIGHT_NOT_FINITE',
      message: /model\.safetensors: tensor model\.layers\.1\.mlp\.up_proj\.weight .*got NaN/,
    });
  });
}

test('temperature of 0 or below', async () => {
  for (const temperature of ['0', '-1']) {
    await expectRefusal(train('--cache', 'cache', '--student', student, '--temperature', temperature), {
      code: 'SETTING_INVALID',
      message: /--temperature: .*above 0, got -?\d/,
      exitCode: 2,
    });
  }
  await expectRefusal(build('--teacher', teacher, '--data', 'rows.jsonl', '--temperatures', '1,0'), {
    code: 'SETTING_INVALID',
    message: /--temperatures: .*from 0\.01 to 1000, got \[1,0\]/,
    exitCode: 2,
  });
});

test('alpha outside [0, 1]', async () => {
  for (const alpha of ['-0.1', '1.01', 'NaN']) {
    await expectRefusal(train('--cache', 'cache', '--student', student, '--alpha', alpha), {
      code: 'SETTING_INVALID',
      message: /--alpha: the value is not allowed/,
      exitCode: 2,
    });
  }
  await writeFile(at('recipe.json'), '{"alpha": 2}');
  await expectRefusal(train('--cache', 'cache', '--student', student, '--recipe', 'recipe.json'), {
    code: 'SETTING_INVALID',
    message: /recipe\.json, key "alpha": .*at most 1, got 2/,
    exitCode: 2,
  });
});

test('top-k larger than the vocabulary', async () => {
  await expectRefusal(build('--teacher', teacher, '--data', 'rows.jsonl', '--top-k', '513'), {
    code: 'TOP_K_LARGER_THAN_VOCABULARY',
    message: /at most 512, got 513/,
  });
});

/** Runs a test on a file system of its own size; says so where the machine does not let us. */
function testOnSmallDisk(name: string, sizeKiB: number, body: (folder: string) => Promise<void>): void {
  test(name, async (t) => {
    const folder = at(`disk-${sizeKiB}`);
    await mkdir(folder);
    const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${sizeKiB}k`, 'stillhouse-test', folder]);
    if (mounted.status !== 0) {
      t.skip('a small tmpfs cannot be mounted here (needs root on Linux)');
      return;
    }
    try {
      await body(folder);
    } finally {
      assert.equal(spawnSync('umount', [folder]).status, 0, 'unmounted');
    }
  });
}

async function expectDiskFull(args: readonly string[]): Promise<void> {
  const { code, stderr } = await stillhouse(...args);
  assert.equal(code, 1, stderr);
  assert.match(stderr, /^stillhouse: .*\[DISK_FULL\]\n$/m);
}

testOnSmallDisk('disk full: a cache is whole as far as it goes, and goes on', 160, async (disk) => {
  await writeLines('many.jsonl', idRows(200, 48, 512));
  const args = [
    'cache',
    'build',
    '--teacher',
    teacher,
    '--data',
    'many.jsonl',
    '--top-k',
    '8',
    '--out',
    join(disk, 'cache'),
  ];
  await expectDiskFull(args);
  assert.equal((await readdir(disk)).includes('cache.recipe.json'), false);
  await expectIncomplete(join(disk, 'cache'));
  assert.equal(spawnSync('mount', ['-o', 'remount,size=16m', disk]).status, 0);
  await succeed(...args);
  await succeed('cache', 'verify', join(disk, 'cache'));
});

/** Absent, or without a fault but not complete. */
async function expectIncomplete(cache: string): Promise<void> {
  const { stdout } = await stillhouse('cache', 'verify', cache, '--json');
  const report = JSON.parse(stdout) as { readonly ok: boolean; readonly complete: boolean };
  assert.equal(report.complete, false);
  const isThere = await stat(join(cache, 'manifest.json')).then(
    () => true,
    () => false,
  );
  assert.equal(report.ok, isThere, stdout);
}

testOnSmallDisk('disk full: no student under its final name', 192, async (disk) => {
  await expectDiskFull(train('--cache', 'cache', '--student', student).with(2, join(disk, 'student')));
  const left = await readdir(disk, { recursive: true });
  assert.deepEqual(
    left.filter((name) => /model\.safetensors|config\.json|partial/.test(name)),
    [],
  );
});

testOnSmallDisk('disk full: no new student, no export, no recipe', 16, async (disk) => {
  await expectDiskFull(['init-student', '--like', student, '--out', join(disk, 'student')]);
  await expectDiskFull(['cache', 'export', 'cache', '--out', join(disk, 'parquet')]);
  assert.deepEqual(await readdir(disk), []);
});
