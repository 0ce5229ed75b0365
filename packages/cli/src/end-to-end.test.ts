import assert from 'node:assert/strict';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { makeTemporaryFolder, type NodeResult, runNode, startNode, unless } from '@stillhouse/testing';
import { afterAll, describe, test } from 'vitest';

const bin = fileURLToPath(new URL('../bin/stillhouse.js', import.meta.url));
const golden = (name: string) => fileURLToPath(new URL(`../../../test/golden/${name}`, import.meta.url));
const teacher = golden('qwen2-tiny-untied');
const student = golden('qwen2-tiny');

const ROWS = 8;
const LENGTH = 20;

const rows = Array.from({ length: ROWS }, (_, row) =>
  JSON.stringify({
    id: `row-${row}`,
    split: row < 6 ? 'train' : 'test',
    input_ids: Array.from({ length: LENGTH }, (_, i) => (row * 97 + i * i * 13 + 7) % 512),
    loss_mask: Array.from({ length: LENGTH }, (_, i) => (i >= 8 ? 1 : 0)),
  }),
);

/** Runs a command with `--json` and checks that standard output is one document, standard error has no fault. */
async function runForJson<Result>(cwd: string, ...args: string[]): Promise<Result> {
  const { code, stdout, stderr } = await runNode([bin, ...args, '--json'], { cwd });
  assert.equal(code, 0, stderr);
  return JSON.parse(stdout) as Result;
}

const run = (cwd: string, ...args: string[]): Promise<NodeResult> => runNode([bin, ...args], { cwd });

const readJson = async (path: string) => JSON.parse(await readFile(path, 'utf8')) as Record<string, unknown>;

describe('from a teacher to a measured student, by commands alone', async () => {
  const folder = await makeTemporaryFolder({ onTestFinished: afterAll });
  await writeFile(join(folder, 'rows.jsonl'), `${rows.join('\n')}\n`);
  const buildArgs = ['cache', 'build', '--teacher', teacher, '--data', 'rows.jsonl', '--top-k', '16'];

  test('cache build --dry-run writes nothing', async () => {
    const { code, stdout } = await run(folder, ...buildArgs, '--out', 'cache', '--dry-run');
    assert.equal(code, 0);
    assert.match(stdout, /rows +8\n/);
    assert.match(stdout, /tokens +160\n/);
    assert.deepEqual(await readdir(folder), ['rows.jsonl']);
    const plan = await runForJson<Record<string, unknown>>(folder, ...buildArgs, '--out', 'cache', '--dry-run');
    assert.equal(plan.rows, ROWS);
    assert.equal(plan.tokens, ROWS * LENGTH);
    assert.deepEqual(await readdir(folder), ['rows.jsonl']);
  });

  test('cache build, its recipe beside it; the recipe builds the same cache', async () => {
    const { code, stdout, stderr } = await run(folder, ...buildArgs, '--out', 'cache');
    assert.equal(code, 0, stderr);
    assert.match(stdout, /rows +8\n/);
    assert.match(stderr, /^cache build 160\/160 tokens, [\d,]+ tokens\/s, 0 s left, shard 1\/1$/m);
    const recipe = await readJson(join(folder, 'cache.recipe.json'));
    assert.equal(recipe.teacher, teacher);
    assert.equal(recipe.topK, 16);
    await runForJson(folder, 'cache', 'build', '--recipe', 'cache.recipe.json', '--out', 'again');
    const digests = await Promise.all(
      ['cache', 'again'].map(async (name) => (await readJson(join(folder, name, 'manifest.json'))).digest),
    );
    assert.equal(digests[0], digests[1]);
  });

  test('cache info', async () => {
    const { code, stdout } = await run(folder, 'cache', 'info', 'cache');
    assert.equal(code, 0);
    for (const pattern of [
      /^digest +[0-9a-f]{64}$/m,
      /^complete +yes$/m,
      /^rows +8$/m,
      /^tokens +160$/m,
      /^target tokens +96$/m,
      /^top-k +k 16, log_z at T 1, 2, 4, float32 logprobs, packed$/m,
      /^hidden states +layers final as int8$/m,
      /^teacher +.*qwen2.*512/m,
      /^topk +.* [\d.]+$/m,
      /^hidden-final +.* [\d.]+$/m,
    ]) {
      assert.match(stdout, pattern);
    }
    const info = await runForJson<Record<string, unknown>>(folder, 'cache', 'info', 'cache');
    assert.equal(info.targetTokens, 96);
    assert.equal(info.complete, true);
  });

  test('cache verify, whole and damaged', async () => {
    const whole = await runForJson<{ readonly ok: boolean; readonly rowsChecked: number }>(
      folder,
      'cache',
      'verify',
      'cache',
    );
    assert.deepEqual([whole.ok, whole.rowsChecked], [true, ROWS]);
    const [shard] = (await readdir(join(folder, 'again/shards'))).filter((name) => name.includes('topk'));
    const path = join(folder, 'again/shards', shard!);
    const bytes = await readFile(path);
    bytes[bytes.length >> 1]! ^= 1;
    await writeFile(path, bytes);
    const { code, stdout } = await run(folder, 'cache', 'verify', 'again');
    assert.equal(code, 1);
    assert.match(stdout, new RegExp(`^shards/${shard}: the content has sha256`, 'm'));
    const damaged = await run(folder, 'cache', 'verify', 'again', '--json');
    assert.equal(damaged.code, 1);
    assert.equal((JSON.parse(damaged.stdout) as { readonly ok: boolean }).ok, false);
  });

  test('cache quality, its table beside the cache', async () => {
    const args = ['cache', 'quality', 'cache', '--student', student, '--teacher', teacher, '--positions-limit', '40'];
    const { code, stdout, stderr } = await run(folder, ...args, '--temperatures', '1,3');
    assert.equal(code, 0, stderr);
    assert.match(stdout, /^measured +40 positions of 4 rows$/m);
    assert.match(stdout, /^T = 3, exact loss [\d.]+$/m);
    assert.match(stdout, /^full refined +[\d.]+ +1\.00000 +[\d.e-]+ +[\d.e-]+ +0\.99\d+ /m);
    assert.match(stdout, /^topk renormalise +[\d.]+ +0\.\d+ +- /m);
    assert.match(stderr, /^cache quality 40\/40 positions/m);
    const written = await readJson(join(folder, 'cache.quality.json'));
    assert.deepEqual([written.positions, written.temperatures], [40, [1, 3]]);
    const { modes } = await runForJson<{ readonly modes: readonly { readonly name: string }[] }>(folder, ...args);
    assert.deepEqual(
      modes.map(({ name }) => name),
      ['full', 'full refined', 'topk tail', 'topk bucket', 'topk renormalise'],
    );
  });

  test('cache build --student measures what it built', async () => {
    const args = [...buildArgs, '--out', 'measured', '--student', student, '--quality-positions', '24'];
    const { code, stdout, stderr } = await run(folder, ...args);
    assert.equal(code, 0, stderr);
    assert.match(stdout, /^measured +24 positions of \d rows$/m);
    assert.match(stdout, /^T = 2, exact loss [\d.]+$/m);
    assert.equal((await readJson(join(folder, 'measured.quality.json'))).positions, 24);
  });

  test('cache plan recommends what fits the budget', async () => {
    const args = ['cache', 'plan', '--teacher', teacher, '--data', 'rows.jsonl', '--student', student];
    const small = [...args, '--pilot-positions', '64', '--positions-limit', '24'];
    const { code, stdout, stderr } = await run(folder, ...small, '--budget', '60');
    assert.equal(code, 0, stderr);
    assert.match(stdout, /^recommended +(coded|topk) \S+/m);
    assert.match(stdout, /^build it with +--labels /m);
    const plan = await runForJson<{
      readonly recommended: string | null;
      readonly policies: readonly { readonly name: string; readonly bytesPerToken: number }[];
    }>(folder, ...small, '--budget', '0.5');
    assert.equal(plan.recommended, null);
    assert.ok(plan.policies.some(({ name }) => name === 'int8 + topk 16'));
    assert.ok(plan.policies.every(({ bytesPerToken }) => bytesPerToken > 1));
    const refused = await run(folder, ...small, '--temperature', '3');
    assert.equal(refused.code, 1);
    assert.match(refused.stderr, /expected one of 1, 2, 4, got 3/);
  });

  test('cache export', async () => {
    const result = await runForJson<{ readonly rowCount: number; readonly files: readonly string[] }>(
      folder,
      ...['cache', 'export', 'cache', '--format', 'parquet', '--out', 'parquet'],
    );
    assert.equal(result.rowCount, ROWS);
    assert.deepEqual(await readdir(join(folder, 'parquet')), result.files);
    assert.equal((await readJson(join(folder, 'parquet.recipe.json'))).format, 'parquet');
  });

  test('cache export to DistillKit and to axolotl, cache import of both', async () => {
    const stated = ['--teacher-name', 'tiny', '--vocab-size', '512', '--hidden-size', '64', '--layer-count', '2'];
    for (const format of ['distillkit', 'axolotl']) {
      await runForJson(folder, 'cache', 'export', 'cache', '--format', format, '--out', format);
      const result = await runForJson<Record<string, unknown>>(
        folder,
        ...['cache', 'import', '--format', format, '--from', format, '--out', `from-${format}`, ...stated],
      );
      assert.deepEqual([result.rowCount, result.k], [ROWS, 16]);
      assert.equal((await readJson(join(folder, `from-${format}.recipe.json`))).teacherName, 'tiny');
      const { code, stdout } = await run(folder, 'cache', 'verify', `from-${format}`);
      assert.equal(code, 0, stdout);
    }
    const { code, stdout, stderr } = await run(
      folder,
      ...['train', '--cache', 'from-distillkit', '--student', student, '--out', 'imported', '--labels', 'topk'],
      ...['--temperature', '1', '--steps', '2', '--batch-tokens', '60'],
    );
    assert.equal(code, 0, stderr);
    assert.match(stdout, /^steps +2$/m);
  });

  for (const labels of ['full', 'topk', 'none']) {
    test(`train --labels ${labels}`, async () => {
      const { code, stdout, stderr } = await run(
        folder,
        ...['train', '--cache', 'cache', '--student', student, '--out', labels, '--labels', labels],
        ...['--steps', '3', '--batch-tokens', '60', '--split', 'train'],
      );
      assert.equal(code, 0, stderr);
      assert.match(stdout, /^steps +3$/m);
      assert.match(stdout, /^cache digest +[0-9a-f]{64}$/m);
      assert.match(stderr, /^train: 3 steps over 6 rows/m);
      assert.match(stderr, /^train 3\/3 steps, [\d,]+ tokens\/s, 0 s left, loss [\d.]+.*, [\d.]+ MiB$/m);
      const recipe = await readJson(join(folder, labels, 'recipe.json'));
      assert.deepEqual([recipe.labels, recipe.steps, recipe.split], [labels, 3, 'train']);
      const metrics = (await readFile(join(folder, labels, 'metrics.jsonl'), 'utf8')).trim().split('\n');
      assert.equal(metrics.length, 3);
    });
  }

  test('the recipe of a run makes the same student', async () => {
    const result = await runForJson<{ readonly steps: number }>(
      folder,
      'train',
      '--recipe',
      'topk/recipe.json',
      '--out',
      'twin',
    );
    assert.equal(result.steps, 3);
    const weights = await Promise.all(
      ['topk', 'twin'].map((name) => readFile(join(folder, name, 'model.safetensors'))),
    );
    assert.ok(weights[0]!.equals(weights[1]!));
  });

  test('eval --task kd', async () => {
    const args = ['eval', '--task', 'kd', '--cache', 'cache', '--model', 'full', '--split', 'test', '--out', 'kd.json'];
    const { code, stdout, stderr } = await run(folder, ...args);
    assert.equal(code, 0, stderr);
    assert.match(stdout, /^rows +2$/m);
    assert.match(stdout, /^KL at T=1 +[\d.]+ ± [\d.]+$/m);
    const written = await readJson(join(folder, 'kd.json'));
    assert.deepEqual(written.recipe && (written.recipe as Record<string, unknown>).split, 'test');
    const printed = await runForJson<Record<string, unknown>>(folder, ...args.with(-1, 'kd2.json'));
    assert.deepEqual(Object.keys(printed).sort(), Object.keys(written).sort());
  });

  test('init-student', async () => {
    const result = await runForJson<{ readonly parameterCount: number; readonly layerCount: number }>(
      folder,
      ...['init-student', '--like', student, '--layers', '1', '--seed', '7', '--out', 'fresh'],
    );
    assert.equal(result.layerCount, 1);
    const recipe = await readJson(join(folder, 'fresh/recipe.json'));
    assert.deepEqual(recipe, { like: student, out: 'fresh', layers: 1, seed: 7 });
  });
});

test(
  'an interrupt ends a command at once with exit code 130',
  unless(process.platform === 'win32' && 'Windows has no SIGINT'),
  async (t) => {
    const folder = await makeTemporaryFolder(t);
    await writeFile(
      join(folder, 'rows.jsonl'),
      `${Array.from({ length: 3000 }, (_, i) => rows[i % ROWS]!.replace(/row-\d/, `row-${i}`)).join('\n')}\n`,
    );
    const args = ['cache', 'build', '--teacher', teacher, '--data', 'rows.jsonl', '--out', 'cache', '--threads', '1'];
    const { child, finished } = startNode([bin, ...args], { cwd: folder });
    const poll = setInterval(async () => {
      if ((await readdir(folder)).includes('cache')) child.kill('SIGINT');
    }, 10);
    const { code, stderr } = await finished.finally(() => clearInterval(poll));
    assert.equal(code, 130, stderr);
    assert.match(stderr, /stillhouse: interrupted \[INTERRUPTED\]\n$/);
  },
);
