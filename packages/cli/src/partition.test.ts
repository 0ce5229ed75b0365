import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { makeTemporaryFolder, runNode } from '@stillhouse/testing';
import { test } from 'vitest';

const bin = fileURLToPath(new URL('../bin/stillhouse.js', import.meta.url));
const teacher = fileURLToPath(new URL('../../../test/golden/qwen2-tiny-untied', import.meta.url));

const rows = Array.from({ length: 6 }, (_, row) =>
  JSON.stringify({
    id: `row-${row}`,
    input_ids: Array.from({ length: 12 }, (_, i) => (row * 97 + i * i * 13 + 7) % 512),
    loss_mask: Array.from({ length: 12 }, (_, i) => (i >= 5 ? 1 : 0)),
  }),
);

test('parts by the environment, merge, repair and extend, by commands alone', async (t) => {
  const folder = await makeTemporaryFolder(t);
  await writeFile(join(folder, 'rows.jsonl'), rows.slice(0, 5).join('\n'));
  await writeFile(join(folder, 'more.jsonl'), rows[5]!);
  const run = (args: readonly string[], env: Readonly<Record<string, string>> = {}) =>
    runNode([bin, 'cache', ...args], { cwd: folder, env });
  const build = ['build', '--teacher', teacher, '--data', 'rows.jsonl', '--top-k', '4', '--rows-per-shard', '2'];
  const pod = (index: string) => ({ JOB_COMPLETION_INDEX: index, JOB_COMPLETIONS: '2' });

  const second = await run([...build, '--out', 'cache'], pod('1'));
  assert.equal(second.code, 0, second.stderr);
  assert.match(second.stderr, /^cache build: partition 2\/2, by JOB_COMPLETION_INDEX$/m);
  assert.match(second.stdout, /^part +2\/2, not finished yet: 1\/2$/m);
  assert.doesNotMatch(second.stdout, /digest/);
  assert.equal(existsSync(join(folder, 'cache.recipe.json')), false);
  const missing = await run(['merge', 'cache']);
  assert.equal(missing.code, 1);
  assert.match(missing.stderr, /1 of 2 parts are not finished: 1\/2 \(not begun\).*\[CACHE_PARTS_MISSING\]/);
  const unmerged = await run(['info', 'cache']);
  assert.match(unmerged.stderr, /not merged yet.*cache merge.*\[CACHE_NOT_MERGED\]/);

  const first = await run([...build, '--out', 'cache'], pod('0'));
  assert.match(first.stdout, /^part +1\/2, all parts are merged$/m);
  assert.match(first.stdout, /^digest +[0-9a-f]{64}$/m);
  assert.equal(existsSync(join(folder, 'cache.recipe.json')), true);
  await run([...build, '--out', 'whole', '--partition', 'none'], pod('0'));
  const readManifest = (name: string) => readFile(join(folder, name, 'manifest.json'), 'utf8');
  assert.equal(await readManifest('cache'), await readManifest('whole'));
  const wrong = await run([...build, '--out', 'x', '--partition', '3/2']);
  assert.match(wrong.stderr, /i\/n with i from 1 to n, got 3\/2.*\[PARTITION_INVALID\]/);

  for (const partition of ['1/2', '2/2']) {
    await run([...build, '--out', `apart-${partition[0]}`, '--partition', partition]);
  }
  const merged = await run(['merge', 'joined', 'apart-1', 'apart-2', '--json']);
  assert.equal(merged.code, 0, merged.stderr);
  assert.equal((JSON.parse(merged.stdout) as { readonly rows: number }).rows, 5);
  assert.equal(await readManifest('joined'), await readManifest('whole'));

  const path = join(folder, 'joined/shards/00001.topk.arrow');
  const bytes = await readFile(path);
  await writeFile(
    path,
    bytes.map((byte, i) => (i === 99 ? byte ^ 1 : byte)),
  );
  const repaired = await run(['repair', 'joined', '--teacher', teacher]);
  assert.equal(repaired.code, 0, repaired.stderr);
  assert.match(repaired.stdout, /^shards\/00001\.topk\.arrow$/m);
  assert.match(repaired.stdout, /^result +no problem found$/m);
  assert.deepEqual(await readFile(path), bytes);

  const extended = await run([
    'extend',
    'joined',
    '--in-place',
    '--teacher',
    teacher,
    '--data',
    'more.jsonl',
    '--top-k',
    '6',
  ]);
  assert.equal(extended.code, 0, extended.stderr);
  assert.match(extended.stderr, /^cache extend: 4 shards get something, 1 rows are new, on cpu/m);
  assert.match(extended.stdout, /^rows +6, 1 of them new$/m);
  assert.match(extended.stdout, /^top-k +k 6, /m);
  assert.equal((await run(['verify', 'joined'])).code, 0);
});
