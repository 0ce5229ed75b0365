/**
 * Peak memory as `stillhouse train --dry-run` says it against that of the run itself, over sizes of students and
 * settings.
 *   node --import tsx bench/train-memory.ts [--only 6m,135m] [--steps 3]
 * It starts the command itself: what is held against the forecast is the memory of a user's process.
 * STILLHOUSE_MODELS names a folder with smollm2-135m and qwen2.5-coder-0.5b; without it only the random students are
 * run. Caches hold random states and a random matrix of the student's own width: what is measured does not depend on
 * values.
 */
import { spawnSync } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { describeParameters, type ModelConfig, parseModelConfig, writeModelFolder } from '@stillhouse/checkpoint';
import { type LabelledRow, labelPositions, openCacheWriter } from '@stillhouse/teacher-cache';
import { randomUniforms } from '@stillhouse/testing';

const root = new URL('..', import.meta.url).pathname;
const { values } = parseArgs({
  options: { only: { type: 'string' }, steps: { type: 'string', default: '3' } },
});
const [ROWS, LENGTH] = [24, 256];
const BASE = [
  '--batch-tokens',
  '512',
  '--checkpoint-every',
  '2',
  '--threads',
  '2',
  '--device',
  'cpu',
  '--labels',
  'full',
];

interface Case {
  readonly student: string;
  readonly flags: readonly string[];
}
const models = process.env.STILLHOUSE_MODELS;
const ladder: readonly (readonly string[])[] = [
  ['--recompute', 'never'],
  ['--recompute', 'always'],
  ['--recompute', 'always', '--optimiser-state', 'int8'],
  ['--recompute', 'always', '--train-layers', 'last-4'],
  ['--recompute', 'always', '--lora-rank', '8'],
];
const cases: readonly Case[] = [
  { student: '6m', flags: ['--recompute', 'never', '--batch-tokens', '2048'] },
  ...['6m', '50m', ...(models === undefined ? [] : ['135m', '0.5b'])].flatMap((student) =>
    ladder.map((flags) => ({ student, flags })),
  ),
];
const wanted = values.only?.split(',');

const folder = await mkdtemp(join(tmpdir(), 'train-memory-'));
const students: Readonly<Record<string, () => Promise<string>>> = {
  '6m': () => makeStudent('qwen2-6m'),
  '50m': () => makeStudent('qwen2-50m'),
  '135m': async () => join(models!, 'smollm2-135m'),
  '0.5b': async () => join(models!, 'qwen2.5-coder-0.5b'),
};

/** A random student of a configuration. */
async function makeStudent(name: string): Promise<string> {
  const path = join(root, 'bench/configs', `${name}.json`);
  const config = parseModelConfig(JSON.parse(await readFile(path, 'utf8')), path);
  const out = join(folder, name);
  const uniform = randomUniforms(1);
  const parameters = describeParameters(config);
  const shapes = new Map(parameters.map(({ name, shape }) => [name, shape]));
  await writeModelFolder({
    out,
    config: config.raw,
    parameters,
    read: async (name) => {
      const shape = shapes.get(name)!;
      const count = shape.reduce((product, dim) => product * dim, 1);
      return Float32Array.from({ length: count }, () => (shape.length === 1 ? 1 : 0.04 * (uniform() - 0.5)));
    },
    dtype: 'float32',
  });
  return out;
}

async function writeCache(out: string, { vocabSize, hiddenSize }: ModelConfig): Promise<void> {
  const uniform = randomUniforms(2);
  const writer = await openCacheWriter(
    out,
    {
      teacher: {
        kind: 'weights',
        name: 'random',
        architecture: 'none',
        weightsSha256: '0'.repeat(64),
        configSha256: '0'.repeat(64),
        hiddenSize,
        layerCount: 1,
        vocabSize,
      },
      tokenizer: null,
      data: { sha256: '0'.repeat(64), name: 'random', rowCount: ROWS },
      maxLength: null,
      limit: null,
      labels: { topk: null, hidden: { layers: ['final'], dtype: 'float32' }, head: true },
      positions: 'response',
      rowsPerShard: ROWS,
      generator: { name: 'bench', version: '0' },
    },
    { totalRows: ROWS },
  );
  const chunk = Float32Array.from({ length: 1000 * hiddenSize }, () => 0.04 * (uniform() - 0.5));
  const chunks = Array.from(
    { length: Math.ceil(vocabSize / 1000) },
    (_, i) => new Uint8Array(chunk.buffer, 0, 4 * hiddenSize * Math.min(1000, vocabSize - 1000 * i)),
  );
  await writer.putOutputMatrix({ dtype: 'float32', rows: vocabSize, columns: hiddenSize, chunks });
  const rows = Array.from({ length: ROWS }, (_, index): LabelledRow => {
    const inputIds = Int32Array.from({ length: LENGTH }, () => Math.floor(uniform() * vocabSize));
    const lossMask = Uint8Array.from({ length: LENGTH }, (_, t) => (t < 100 ? 0 : 1));
    const positions = labelPositions(lossMask, 'response');
    const states = Float32Array.from({ length: positions.length * hiddenSize }, () => uniform() - 0.5);
    const hidden = new Map([
      ['final', { layer: 'final', dtype: 'float32', width: hiddenSize, values: states }],
    ] as const);
    return { row: { id: `row-${index}`, inputIds, lossMask }, positions, hidden } as LabelledRow;
  });
  await writer.writeShard(0, rows);
  await writer.finish();
  await writer.close();
}

const stillhouse = (args: readonly string[]) =>
  spawnSync(process.execPath, [join(root, 'packages/cli/bin/stillhouse.js'), ...args, '--json'], {
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  });

console.log('| student | settings | forecast, GB | measured, GB | forecast / measured |\n|---|---|---|---|---|');
const ready = new Map<string, { student: string; cache: string }>();
try {
  for (const { student: name, flags } of cases) {
    if (wanted !== undefined && !wanted.includes(name)) continue;
    if (!ready.has(name)) {
      const student = await students[name]!();
      const path = join(student, 'config.json');
      const cache = join(folder, `cache-${name}`);
      await writeCache(cache, parseModelConfig(JSON.parse(await readFile(path, 'utf8')), path));
      ready.set(name, { student, cache });
    }
    const { student, cache } = ready.get(name)!;
    const out = join(folder, 'run');
    const args = ['train', '--cache', cache, '--student', student, '--out', out, '--steps', values.steps, ...BASE];
    const given = [...args, ...flags];
    const forecast = JSON.parse(stillhouse([...given, '--dry-run']).stdout).memory.peakBytes as number;
    const run = stillhouse(given);
    if (run.status !== 0) throw new Error(`${name} ${flags.join(' ')}: ${run.stderr.slice(-500)}`);
    const measured = JSON.parse(run.stdout).peakRssBytes as number;
    await rm(out, { recursive: true });
    const figures = [(forecast / 1e9).toFixed(2), (measured / 1e9).toFixed(2), (forecast / measured).toFixed(2)];
    console.log(`| ${[name, flags.join(' '), ...figures].join(' | ')} |`);
  }
} finally {
  await rm(folder, { recursive: true, force: true });
}
