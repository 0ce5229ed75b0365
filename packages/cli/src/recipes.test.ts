import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { runNode } from '@stillhouse/testing';
import { afterAll, beforeAll, test } from 'vitest';

const bin = fileURLToPath(new URL('../bin/stillhouse.js', import.meta.url));
const recipes = fileURLToPath(new URL('../../../recipes', import.meta.url));
const like = fileURLToPath(new URL('../../../test/golden/qwen2-tiny', import.meta.url));
const names = readdirSync(recipes).filter((name) => name.endsWith('.json'));

let folder = '';
const run = async (...args: string[]) => {
  const { code, stderr, stdout } = await runNode([bin, ...args], { cwd: folder });
  assert.equal(code, 0, stderr);
  return stdout;
};

const rows = Array.from({ length: 8 }, (_, row) =>
  JSON.stringify({
    id: `row-${row}`,
    task: row % 2 === 0 ? 'math' : 'code',
    ...(row < 4 ? { answer: '42' } : {}),
    input_ids: Array.from({ length: 12 }, (_, i) => (row * 97 + i * i * 13 + 7) % 512),
    loss_mask: Array.from({ length: 12 }, (_, i) => (i >= 4 ? 1 : 0)),
  }),
);

// As deep as the pair that the recipes speak of, and as narrow as can be.
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'stillhouse-'));
  await writeFile(join(folder, 'rows.jsonl'), `${rows.join('\n')}\n`);
  const shape = (layers: number, hidden: number) => [
    ...['--layers', String(layers), '--hidden', String(hidden), '--heads', '2', '--kv-heads', '1'],
    ...['--intermediate', '16'],
  ];
  await run('init-student', '--like', like, ...shape(28, 16), '--seed', '1', '--out', 'teacher');
  await run('init-student', '--like', like, ...shape(24, 8), '--seed', '2', '--out', 'student');
  const layers = 'final,7,14,21,attention.7,attention.14';
  const build = ['cache', 'build', '--teacher', 'teacher', '--data', 'rows.jsonl', '--hidden-layers', layers];
  await run(...build, '--top-k', '8', '--threads', '1', '--out', 'cache');
});
afterAll(() => rm(folder, { recursive: true, force: true }));

test('there are recipes', () => assert.ok(names.length >= 8, names.join()));

for (const name of names) {
  test(`recipe ${name} runs to its end`, async () => {
    const out = join(folder, name.replace('.json', ''));
    const small = ['--batch-tokens', '12', '--threads', '1', '--device', 'cpu'];
    const path = join(recipes, name);
    const comments = (await readFile(path, 'utf8')).split('\n').filter((line) => /^\s*\/\//.test(line));
    assert.ok(comments.length >= 2, 'a recipe says when to use it');
    const steps = (await readFile(path, 'utf8')).includes('"epochs"') ? ['--epochs', '0.25'] : ['--steps', '2'];
    await run('train', '--recipe', path, '--cache', 'cache', '--student', 'student', '--out', out, ...steps, ...small);
    const resolved = JSON.parse(await readFile(join(out, 'recipe.json'), 'utf8')) as {
      readonly steps?: number;
      readonly stages?: readonly { readonly name: string; readonly steps: number }[];
    };
    const parts = resolved.stages ?? [{ name: undefined, steps: resolved.steps! }];
    const lines = (await readFile(join(out, 'metrics.jsonl'), 'utf8')).trim().split('\n');
    assert.deepEqual(
      lines.map((line) => (JSON.parse(line) as { readonly stage?: string }).stage),
      parts.flatMap((part) => Array.from({ length: part.steps }, () => part.name)),
    );
    await readFile(join(out, 'model.safetensors'));
  });
}
