import assert from 'node:assert/strict';
import { existsSync, writeFileSync } from 'node:fs';
import { cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { openCacheAt } from '@stillhouse/cache-remote';
import type { ExactMatchResult } from '@stillhouse/evaluation';
import {
  carryOutSweep,
  checkSweep,
  inTurn,
  type RunFigures,
  readSweep,
  readSweepFigures,
  type SweepFigures,
  shareInputs,
  writeSweepReport,
} from '@stillhouse/experiments';
import { type NodeResult, runNode, startNode, unless, writeDataRows } from '@stillhouse/testing';
import { afterAll, beforeAll, test } from 'vitest';

const bin = fileURLToPath(new URL('../../bin/stillhouse.js', import.meta.url));
const golden = (name: string) => fileURLToPath(new URL(`../../../../test/golden/${name}`, import.meta.url));
const skip = process.platform === 'win32' && 'Windows has no such signals';

const STEPS = 60;
const shared = {
  ...{ cache: 'cache', student: golden('qwen2-tiny'), split: 'train', evalSplit: 'test', threads: 1 },
  ...{ steps: STEPS, checkpointEvery: 4, batchTokens: 40, lr: 1e-3, labels: 'topk' },
};
/** The run of the absurd rate diverges; the others are whole. */
const SWEEP = { grid: { temperature: [1, 2] }, list: [{ lr: 1e38 }] };
const [ONE, TWO, DIVERGED] = ['temperature=1', 'temperature=2', 'lr=1e+38'];

let folder = '';
const sweep = (...args: readonly string[]) => runNode([bin, 'sweep', ...args], { cwd: folder });
const readText = (...path: readonly string[]) => readFile(join(folder, ...path), 'utf8');
const writeRecipe = (name: string, recipe: object) => writeFile(join(folder, name), JSON.stringify(recipe));

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'stillhouse-'));
  await writeDataRows(join(folder, 'rows.jsonl'));
  const build = ['cache', 'build', '--teacher', golden('qwen2-tiny-untied'), '--data', 'rows.jsonl', '--out', 'cache'];
  const built = await runNode([bin, ...build, '--top-k', '8'], { cwd: folder });
  assert.equal(built.code, 0, built.stderr);
  await writeRecipe('sweep.json', { ...shared, sweep: SWEEP });
  const whole = await sweep('sweep.json', '--out', 'whole', '--price-per-hour', '2');
  assert.equal(whole.code, 1, 'one run fails');
  assert.match(whole.stderr, /sweep: run 3 of 3, lr=1e\+38: failed, the others go on: .*\[TRAINING_DIVERGED\]/);
  assert.match(whole.stdout, /^failed: lr=1e\+38: .*\[TRAINING_DIVERGED\]$/m);
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function readFigures(out: string): Promise<SweepFigures> {
  return JSON.parse(await readText(out, 'report.json')) as SweepFigures;
}

/** What does not depend on how long things take, and where they lie. */
const lasting = ({ runs, differing }: SweepFigures) => ({
  differing,
  runs: runs.map(({ trainTokensPerSecond: _, wallMs: __, cpuMs: ___, price: ____, failure, ...rest }) => ({
    ...rest,
    failure: failure?.code ?? null,
  })),
});

async function expectSameSweep(out: string): Promise<void> {
  assert.deepEqual(lasting(await readFigures(out)), lasting(await readFigures('whole')));
  for (const name of [ONE!, TWO!]) {
    for (const file of ['model.safetensors', 'config.json']) {
      const [one, two] = await Promise.all(
        ['whole', out].map((where) => readFile(join(folder, where, 'runs', name, file))),
      );
      assert.ok(one!.equals(two!), `${name}/${file}`);
    }
    assert.deepEqual(await readSteps(out, name), await readSteps('whole', name));
  }
}

async function readSteps(out: string, name: string): Promise<readonly object[]> {
  const text = await readText(out, 'runs', name, 'metrics.jsonl').catch(() => '');
  return text
    .split('\n')
    .filter((line) => line.endsWith('}'))
    .map((line) => {
      const values = Object.entries(JSON.parse(line) as Record<string, number>);
      return Object.fromEntries(values.filter(([key]) => !key.endsWith('Ms')));
    });
}

test('the report has what eval finds of each student, the best first, and the page shows it', async () => {
  const figures = await readFigures('whole');
  assert.deepEqual(figures.differing, ['temperature', 'lr']);
  assert.deepEqual(figures.runs.map(({ name }) => name).sort(), [DIVERGED, ONE, TWO]);
  const [best, second, failed] = figures.runs as [RunFigures, RunFigures, RunFigures];
  assert.ok(best.klAt1!.value < second.klAt1!.value);
  assert.deepEqual([best.isBest, second.isBest, failed.isBest], [true, false, false]);
  assert.deepEqual([best.state, second.state, failed.state], ['finished', 'finished', 'failed']);
  assert.deepEqual(failed.settings, { temperature: 2, lr: 1e38 });
  for (const { name, temperature, klAt1, klAtT, ce, top1Agreement, ...run } of [best, second]) {
    if (name === ONE) continue;
    const model = join('whole/runs', name);
    const asked = ['eval', '--task', 'kd', '--model', model, '--cache', 'cache', '--split', 'test', '--threads', '1'];
    const evaluated = await runNode(
      [bin, ...asked, '--temperatures', [...new Set([1, temperature])].join(','), '--out', 'kd.json', '--json'],
      { cwd: folder },
    );
    assert.equal(evaluated.code, 0, evaluated.stderr);
    const { standardErrors, ...kd } = JSON.parse(evaluated.stdout);
    const t = String(temperature);
    assert.deepEqual(klAt1, { value: kd.kl['1'], standardError: standardErrors.kl['1'] });
    assert.deepEqual(klAtT, { value: kd.kl[t], standardError: standardErrors.kl[t] });
    assert.deepEqual(ce, { value: kd.ce, standardError: standardErrors.ce });
    assert.deepEqual(top1Agreement, { value: kd.top1Agreement, standardError: standardErrors.top1Agreement });
    assert.deepEqual([run.cacheDigest, run.heldOutDigest], [kd.cacheDigest, kd.cacheDigest]);
    assert.equal(run.parameters, 119_360);
    assert.equal(run.weightBytes, (await readFile(join(folder, model, 'model.safetensors'))).length);
    assert.ok(run.wallMs > 0 && run.cpuMs > 0 && run.trainTokensPerSecond! > 0);
    assert.equal(run.price, (run.wallMs / 3_600_000) * 2);
  }
  const page = await readText('whole/report.html');
  for (const text of [
    '2 of 3 runs finished, 1 failed',
    `${best.name} *`,
    'aria-label="Fidelity"',
    'TRAINING_DIVERGED',
  ]) {
    assert.ok(page.includes(text), text);
  }
  const csv = (await readText('whole/report.csv')).split('\r\n');
  assert.match(csv[0]!, /^run,temperature,lr,best,state,kl_at_1_nats,kl_at_1_nats_standard_error,/);
  assert.ok(csv[1]!.startsWith(`${best.name},${best.temperature},0.001,true,finished,${best.klAt1!.value},`));
  const markdown = (await readText('whole/report.md')).split('\n');
  assert.ok(markdown[2]!.startsWith(`| ${best.name} * |`));
  assert.equal(new Set(markdown.slice(0, -1).map((line) => line.split('|').length)).size, 1);
});

test('a sweep that is killed again and again ends as one that was not', unless(skip), async () => {
  const countWork = async () => {
    const counts = await Promise.all([ONE!, TWO!].map(async (name) => (await readSteps('killed', name)).length));
    const done = await Promise.all(
      [ONE!, TWO!].map((name) => readText('killed/runs', name, 'training.json').catch(() => '')),
    );
    return counts[0]! + counts[1]! + done.filter((text) => text !== '').length;
  };
  // In the first run, when it is trained, in the second.
  const thresholds = [6, STEPS + 1, STEPS + 10];
  const results: NodeResult[] = [];
  for (let at = 0; results.length < 10; at++) {
    const { child, finished } = startNode([bin, 'sweep', 'sweep.json', '--out', 'killed'], { cwd: folder });
    const poll = setInterval(async () => {
      if (at < thresholds.length && (await countWork()) >= thresholds[at]!) child.kill('SIGKILL');
    }, 5);
    const result = await finished;
    clearInterval(poll);
    results.push(result);
    if (result.signal === null) break;
  }
  assert.ok(results.length > 2, 'it was killed more than once');
  const last = results.at(-1)!;
  assert.deepEqual([last.code, last.signal], [1, null], last.stderr);
  assert.ok(results.some(({ stderr }) => /train: going on after step \d+/.test(stderr)));
  await expectSameSweep('killed');

  // Nothing of it is done again, and what has failed is still a failure.
  const trained = await readText('killed/runs', ONE!, 'training.json');
  const again = await sweep('sweep.json', '--out', 'killed');
  assert.equal(again.code, 1);
  assert.deepEqual(again.stderr.match(/: (done before|diverged before)/g), [
    ': done before',
    ': done before',
    ': diverged before',
  ]);
  assert.doesNotMatch(again.stderr, /^(train|eval)/m);
  assert.equal(await readText('killed/runs', ONE!, 'training.json'), trained);
});

test('SIGINT ends a sweep after the step, saved; called again it goes on there', unless(skip), async () => {
  // Long enough for the signal to come in its middle.
  await writeRecipe('longer.json', { ...shared, steps: 300, checkpointEvery: 1000, sweep: SWEEP });
  const { child, finished } = startNode([bin, 'sweep', 'longer.json', '--out', 'stopped', '--only', TWO!], {
    cwd: folder,
  });
  let isSent = false;
  const poll = setInterval(async () => {
    // Several looks may be under way at once; a second signal would end the run without a checkpoint.
    if ((await readSteps('stopped', TWO!)).length < 5 || isSent) return;
    isSent = true;
    child.kill('SIGINT');
  }, 5);
  const stopped = await finished;
  clearInterval(poll);
  assert.equal(stopped.code, 130, stopped.stderr);
  assert.match(stopped.stderr, /sweep: SIGINT, stopping after this step and saving/);
  const { length } = await readSteps('stopped', TWO!);
  assert.ok(
    (await readdir(join(folder, 'stopped/runs', TWO!, 'checkpoints'))).includes(
      `step-${String(length).padStart(8, '0')}`,
    ),
  );
  assert.equal((await readFigures('stopped')).runs.find(({ name }) => name === TWO)!.state, 'begun');

  const other = await sweep('longer.json', '--out', 'stopped', '--only', TWO!);
  assert.equal(other.code, 0, other.stderr);
  assert.match(other.stderr, new RegExp(`going on after step ${length}$`, 'm'));
  const steps = (await readSteps('stopped', TWO!)).map((line) => (line as { readonly step: number }).step);
  assert.deepEqual(
    steps,
    Array.from({ length: 300 }, (_, at) => at + 1),
  );
});

test('parts of a sweep by separate processes make the whole, with one report', async () => {
  const parts = await Promise.all(
    ['1/2', '2/2'].map((part) => sweep('sweep.json', '--out', 'parts', '--partition', part)),
  );
  // The run that diverges is in the first part.
  assert.deepEqual(
    parts.map(({ code }) => code),
    [1, 0],
    parts[1]!.stderr,
  );
  assert.match(parts[1]!.stderr, /sweep: 1 of 3 runs are this process's/);
  await expectSameSweep('parts');
  const written = await readText('parts/report.csv');
  const report = await runNode([bin, 'sweep', 'report', 'parts', '--json'], { cwd: folder });
  assert.equal(report.code, 0, report.stderr);
  assert.deepEqual(JSON.parse(report.stdout), await readFigures('parts'));
  assert.equal(await readText('parts/report.csv'), written);
});

test('two processes never work on one run', unless(skip), async () => {
  await writeRecipe('long.json', { ...shared, steps: 100_000, sweep: { grid: { seed: [1, 2] } } });
  const { child, finished } = startNode([bin, 'sweep', 'long.json', '--out', 'busy'], { cwd: folder });
  while ((await readSteps('busy', 'seed=1')).length === 0) await sleep(20);
  const second = await sweep('long.json', '--out', 'busy', '--only', 'seed=1');
  child.kill('SIGKILL');
  await finished;
  assert.equal(second.code, 1);
  assert.match(second.stderr, /another process is working on this run: process \d+ .*\[RUN_IN_USE\]/);
});

/** A student that can answer: with a tokenizer cut down to its 512 ids. */
async function makeAnsweringStudent(): Promise<string> {
  const student = join(folder, 'answering');
  await mkdir(student);
  for (const file of ['model.safetensors', 'config.json'])
    await cp(join(golden('qwen2-tiny'), file), join(student, file));
  const bpe = fileURLToPath(new URL('../../../../test/tokenizer/tiny-bpe/tokenizer.json', import.meta.url));
  const tokenizer = JSON.parse(await readFile(bpe, 'utf8'));
  const isKept = ([, id]: [string, unknown]) => Number(id) < 512;
  tokenizer.model.vocab = Object.fromEntries(Object.entries(tokenizer.model.vocab).filter(isKept));
  tokenizer.model.merges = [];
  tokenizer.added_tokens = [];
  await writeFile(join(student, 'tokenizer.json'), JSON.stringify(tokenizer));
  return student;
}

test('questions give accuracy and decoding speed; with others they are asked again, and nothing is trained again', async () => {
  const questions = join(folder, 'questions.jsonl');
  await writeFile(questions, ['a', 'b', 'c'].map((prompt) => JSON.stringify({ prompt, answer: '1' })).join('\n'));
  const student = await makeAnsweringStudent();
  await writeRecipe('asked.json', { ...shared, student, steps: 2, sweep: { grid: { temperature: [1] } } });
  const asked = { out: 'asked', questions, maxNewTokens: 4 };
  const [run] = (await inProcess('asked.json', asked)).figures!.runs;
  const result = JSON.parse(await readText('asked/runs', ONE!, 'exact-match.json')) as ExactMatchResult;
  assert.equal(result.questions, 3);
  assert.deepEqual(run!.accuracy, { value: result.accuracy, ...result.interval });
  assert.equal(run!.decodeTokensPerSecond, result.tokensPerSecond);
  assert.match(await readText('asked/report.md'), /accuracy/);

  const trained = await readText('asked/runs', ONE!, 'training.json');
  const [fewer] = (await inProcess('asked.json', { ...asked, questionsLimit: 2 })).figures!.runs;
  assert.equal(fewer!.state, 'finished');
  const limited = JSON.parse(await readText('asked/runs', ONE!, 'exact-match.json')) as ExactMatchResult;
  assert.equal(limited.questions, 2);
  assert.equal(await readText('asked/runs', ONE!, 'training.json'), trained);
});

/** The sweep of a recipe, in this process. */
async function inProcess(recipe: string, flags: Readonly<Record<string, unknown>>) {
  const given = { cache: join(folder, 'cache'), ...flags, out: join(folder, String(flags.out)) };
  const { plan, settings } = await readSweep(join(folder, recipe), given);
  const stopSignal = new AbortController().signal;
  return shareInputs((shared) => carryOutSweep(plan, settings, { shared, events: {}, stopSignal }));
}

test('every run is checked before the first begins, and the others that are refused are named', async () => {
  const grid = { temperature: [1, 1.5, 2], labels: ['topk', 'full'] };
  await writeRecipe('impossible.json', { ...shared, labels: undefined, sweep: { grid, list: [{ split: 'test' }] } });
  await assert.rejects(inProcess('impossible.json', { out: 'impossible' }), {
    code: 'TEMPERATURE_NOT_IN_GRID',
    message: /run labels=topk_temperature=1\.5, --temperature 1\.5: .*other temperatures only; refused too: split=test/,
  });
  assert.ok(!(await readdir(folder)).includes('impossible'));
});

test('a dry run checks the runs and writes nothing', async () => {
  const { figures, chosen, hasFailed } = await inProcess('sweep.json', { out: 'dry', dryRun: true, partition: '2/2' });
  assert.deepEqual([figures, chosen, hasFailed], [undefined, [TWO], false]);
  assert.ok(!(await readdir(folder)).includes('dry'));
});

test('runs may learn from several caches, and are known by the digests of all', async () => {
  const build = ['cache', 'build', '--teacher', golden('qwen2-tiny-untied'), '--data', 'rows.jsonl', '--limit', '8'];
  const built = await runNode([bin, ...build, '--out', 'few', '--top-k', '8'], { cwd: folder });
  assert.equal(built.code, 0, built.stderr);
  const [cache, few] = [join(folder, 'cache'), join(folder, 'few')];
  const list = [{ cache: `${cache},${few}`, cacheWeights: [2, 1] }, { cache: few }, { cache }];
  await writeRecipe('mixed.json', { ...shared, cache: undefined, evalCache: cache, steps: 1, sweep: { list } });
  const recipe = await readSweep(join(folder, 'mixed.json'), { out: join(folder, 'mixed') });
  const checked = await checkSweep(recipe.plan, { openCache: openCacheAt, finiteStudents: new Set() });
  const digestOf = (name: string) => checked.find(({ run }) => run.settings.cache === name)!.cacheDigest;
  assert.equal(digestOf(`${cache},${few}`), `${digestOf(cache)},${digestOf(few)}`);
});

test('a sweep grows by runs, and no run becomes another', async () => {
  await writeRecipe('more.json', {
    ...shared,
    sweep: { grid: { temperature: [1, 2] }, list: [{ steps: 3, seed: 5 }] },
  });
  const more = await sweep('more.json', '--out', 'parts');
  assert.equal(more.code, 0, more.stderr);
  assert.equal(more.stderr.match(/done before/g)?.length, 2);
  const names = async () => (await readFigures('parts')).runs.map(({ name }) => name).sort();
  assert.deepEqual(await names(), ['seed=5_steps=3', ONE, TWO]);

  await writeRecipe('other.json', { ...shared, steps: 4, sweep: SWEEP });
  await assert.rejects(inProcess('other.json', { out: 'parts' }), {
    code: 'SWEEP_DIFFERS',
    message: /run temperature=1: .*\(steps: have 60, asked 4\)/,
  });
  assert.deepEqual(await names(), ['seed=5_steps=3', ONE, TWO]);
});

test('a run that fails keeps no other, and is tried again; runs are watched as those of train are', async () => {
  const sweep = { grid: { seed: [1, 2] } };
  await writeRecipe('watched.json', { ...shared, steps: 2, evalEvery: 1, tensorboard: true, sweep });
  const blocked = join(folder, 'watched/runs/seed=1');
  await mkdir(blocked, { recursive: true });
  await writeFile(join(blocked, 'config.json'), '{}');
  const { figures, hasFailed } = await inProcess('watched.json', { out: 'watched' });
  assert.equal(hasFailed, true);
  const states = ({ runs }: SweepFigures) => Object.fromEntries(runs.map(({ name, state }) => [name, state]));
  assert.deepEqual(states(figures!), { 'seed=1': 'failed', 'seed=2': 'finished' });
  assert.equal(figures!.runs.find(({ name }) => name === 'seed=1')!.failure!.code, 'RUN_EXISTS');

  await rm(join(blocked, 'config.json'));
  const again = await inProcess('watched.json', { out: 'watched' });
  assert.equal(again.hasFailed, false);
  assert.deepEqual(states(again.figures!), { 'seed=1': 'finished', 'seed=2': 'finished' });
  for (const name of ['seed=1', 'seed=2']) {
    const heldOut = (await readText('watched/runs', name, 'held-out.jsonl')).trim().split('\n');
    const { kl } = JSON.parse(heldOut.at(-1)!) as { readonly kl: number };
    assert.ok(Math.abs(kl - again.figures!.runs.find((run) => run.name === name)!.klAt1!.value) < 1e-6);
    assert.equal((await readdir(join(folder, 'watched/runs', name, 'tensorboard'))).length, 1);
  }
});

test('a recipe with stages is swept: what a run sets holds in all of them', async () => {
  const stages = [
    { name: 'first', steps: 2, temperature: 4 },
    { name: 'second', steps: 1, lr: 1e-2 },
  ];
  const recipe = { ...shared, steps: undefined, stages, sweep: { grid: { alpha: [0.5, 1] } } };
  await writeRecipe('staged.json', recipe);
  const { runs } = (await inProcess('staged.json', { out: 'staged' })).figures!;
  assert.deepEqual(runs.map(({ name, state, temperature }) => [name, state, temperature]).sort(), [
    ['alpha=0.5', 'finished', 2],
    ['alpha=1', 'finished', 2],
  ]);
  const { stages: written } = JSON.parse(await readText('staged/runs/alpha=1/recipe.json'));
  assert.deepEqual(
    written.map(({ alpha, temperature, steps, lr }: Record<string, number>) => [alpha, temperature, steps, lr]),
    [
      [1, 4, 2, 1e-3],
      [1, 2, 1, 1e-2],
    ],
  );
  assert.equal((await readSteps('staged', 'alpha=1')).length, 3);
  assert.equal((await inProcess('staged.json', { out: 'staged', evalEvery: 1 })).hasFailed, false);
  await writeRecipe('staged.json', { ...recipe, evalEvery: 1, sweep: { list: [{ seed: 3 }] } });
  const watched = await inProcess('staged.json', { out: 'staged-watched' });
  assert.equal(watched.hasFailed, false);
  assert.equal((await readText('staged-watched/runs/seed=3/held-out.jsonl')).trim().split('\n').length, 4);
  await writeRecipe('staged.json', { ...recipe, stages: [stages[0], { ...stages[1], lr: 2e-2 }] });
  await assert.rejects(inProcess('staged.json', { out: 'staged' }), {
    code: 'SWEEP_DIFFERS',
    message: /\(second\.lr: have 0\.01, asked 0\.02\)/,
  });
});

test('all runs of a process share one opened cache', async () => {
  const location = join(folder, 'cache');
  await shareInputs(async ({ openCache }) => {
    await assert.rejects(openCache(join(folder, 'later')), { code: 'CACHE_NOT_FOUND' });
    await cp(location, join(folder, 'later'), { recursive: true });
    assert.equal((await openCache(join(folder, 'later'))).rowCount, 12);
    const [one, two] = [await openCache(location), await openCache(location)];
    assert.equal(one.readRow, two.readRow);
    await one.close();
    assert.equal((await two.readRow(3)).row.id, 'row-3');
  });
});

test('processes write the files of a sweep one after the other', async () => {
  const out = join(folder, 'turns');
  await mkdir(out);
  let isBusy = false;
  const turns = Array.from({ length: 4 }, (_, turn) =>
    inTurn(out, async () => {
      assert.ok(!isBusy);
      isBusy = true;
      await sleep(20);
      isBusy = false;
      return turn;
    }),
  );
  assert.deepEqual(await Promise.all(turns), [0, 1, 2, 3]);
  assert.deepEqual(await readdir(out), []);
});

test('a run whose lock another process has taken is given up, and nothing is written over', async () => {
  await writeRecipe('seeds.json', { ...shared, steps: 2, sweep: { grid: { seed: [1] } } });
  const run = join(folder, 'lost/runs/seed=1');
  const theirs = JSON.stringify({ pid: 1, host: 'elsewhere', started: null, token: 'theirs' });
  const watch = setInterval(() => {
    if (existsSync(join(run, 'metrics.jsonl'))) writeFileSync(join(run, '.sweep-lock'), theirs);
  }, 2);
  await assert.rejects(inProcess('seeds.json', { out: 'lost' }), { code: 'RUN_LOCK_LOST' });
  clearInterval(watch);
  assert.equal(await readText('lost/runs/seed=1/.sweep-lock'), theirs);
});

test('a folder without a sweep, and one whose record is damaged, are refused', async () => {
  await assert.rejects(readSweepFigures(join(folder, 'cache')), {
    code: 'SWEEP_ABSENT',
    message: /no sweep in this folder/,
  });
  await mkdir(join(folder, 'damaged'));
  await writeFile(join(folder, 'damaged/sweep.json'), '{');
  await assert.rejects(writeSweepReport(join(folder, 'damaged')), { code: 'SWEEP_FILE_DAMAGED' });
  assert.deepEqual(await readdir(join(folder, 'damaged')), ['sweep.json']);
});
