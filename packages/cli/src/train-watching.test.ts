import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type NodeResult, runNode, startNode, unless, writeDataRows } from '@stillhouse/testing';
import { afterAll, beforeAll, test } from 'vitest';

const bin = fileURLToPath(new URL('../bin/stillhouse.js', import.meta.url));
const golden = (name: string) => fileURLToPath(new URL(`../../../test/golden/${name}`, import.meta.url));
const student = golden('qwen2-tiny');
const skip = process.platform === 'win32' && 'Windows has no such signals';

let folder = '';
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'stillhouse-'));
  await writeDataRows(join(folder, 'rows.jsonl'));
  const build = ['cache', 'build', '--teacher', golden('qwen2-tiny-untied'), '--data', 'rows.jsonl', '--out', 'cache'];
  const { code, stderr } = await runNode([bin, ...build], { cwd: folder });
  assert.equal(code, 0, stderr);
});

afterAll(() => rm(folder, { recursive: true, force: true }));

const trainArgs = (out: string, ...more: string[]) => [
  ...[bin, 'train', '--cache', 'cache', '--student', student, '--out', out, '--batch-tokens', '40', '--threads', '1'],
  ...['--lr', '1e-3', '--split', 'train', ...more],
];

const LONG = ['--steps', '100000', '--checkpoint-every', '1000000'];

const countSteps = async (out: string) =>
  (await readFile(join(folder, out, 'metrics.jsonl'), 'utf8').catch(() => '')).split('\n').length - 1;

/**
 * Starts a run and sends it a signal once it has done `steps` steps.
 * @param second another signal, sent when the run says that it heard the first
 */
async function trainAndSignal(
  args: readonly string[],
  out: string,
  steps: number,
  first: NodeJS.Signals,
  second?: NodeJS.Signals,
): Promise<NodeResult> {
  const { child, finished } = startNode(args, { cwd: folder });
  let isSent = false;
  const poll = setInterval(async () => {
    // Several looks may be under way at once; a second signal would end the run without a checkpoint.
    if ((await countSteps(out)) < steps || isSent) return;
    isSent = true;
    child.kill(first);
  }, 10);
  child.stderr!.on('data', (text: string) => {
    if (second !== undefined && text.includes('stopping after this step')) child.kill(second);
  });
  return finished.finally(() => clearInterval(poll));
}

const readLines = async (out: string, file: string) =>
  (await readFile(join(folder, out, file), 'utf8'))
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, number>);

for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const) {
  test(
    `${signal} finishes the step, saves and exits with ${code}; the run goes on from there`,
    unless(skip),
    async () => {
      const out = `stopped-${signal}`;
      const result = await trainAndSignal(trainArgs(out, ...LONG), out, 3, signal);
      assert.equal(result.code, code, result.stderr);
      assert.match(result.stderr, new RegExp(`${signal}, stopping after this step and saving`));
      const steps = (await readLines(out, 'metrics.jsonl')).map(({ step }) => step);
      const last = steps.at(-1)!;
      assert.deepEqual(await readdir(join(folder, out, 'checkpoints')), [`step-${String(last).padStart(8, '0')}`]);
      assert.match(result.stdout, new RegExp(`^steps +${last.toLocaleString('en-US')}$`, 'm'));
      assert.ok(!(await readdir(join(folder, out))).includes('model.safetensors'));
      const again = await trainAndSignal(trainArgs(out, ...LONG, '--resume'), out, last + 1, 'SIGINT');
      assert.equal(again.code, 130, again.stderr);
      assert.match(again.stderr, new RegExp(`going on after step ${last.toLocaleString('en-US')}$`, 'm'));
      const further = (await readLines(out, 'metrics.jsonl')).map(({ step }) => step!);
      assert.deepEqual(
        further,
        further.map((_, i) => i + 1),
      );
      assert.ok(further.length > last);
    },
  );
}

test('a second SIGINT ends at once, without a checkpoint', unless(skip), async () => {
  // A step of a thousand rows leaves time between the two.
  const args = [...trainArgs('twice', ...LONG), '--batch-tokens', '20000'];
  const result = await trainAndSignal(args, 'twice', 1, 'SIGINT', 'SIGINT');
  assert.equal(result.code, 130, result.stderr);
  assert.match(result.stderr, /stillhouse: interrupted \[INTERRUPTED\]\n$/);
  assert.ok(!(await readdir(join(folder, 'twice'))).includes('checkpoints'));
});

test('SIGKILL loses at most the steps since the last checkpoint; the resumed run equals a straight one', {
  ...unless(skip),
}, async () => {
  const args = (out: string) => trainArgs(out, '--steps', '60', '--checkpoint-every', '5');
  const straight = await runNode(args('straight'), { cwd: folder });
  assert.equal(straight.code, 0, straight.stderr);
  const { child, finished } = startNode(args('killed'), { cwd: folder });
  const poll = setInterval(async () => {
    const names = await readdir(join(folder, 'killed/checkpoints')).catch(() => []);
    if (names.some((name) => /^step-/.test(name))) child.kill('SIGKILL');
  }, 5);
  const killed = await finished;
  clearInterval(poll);
  assert.equal(killed.signal, 'SIGKILL');
  const resumed = await runNode([...args('killed'), '--resume'], { cwd: folder });
  assert.equal(resumed.code, 0, resumed.stderr);
  assert.match(resumed.stderr, /going on after step \d+/);
  for (const file of ['model.safetensors', 'config.json']) {
    const [one, two] = await Promise.all(['straight', 'killed'].map((out) => readFile(join(folder, out, file))));
    assert.ok(one!.equals(two!), file);
  }
});

test('held-out figures come while it trains, equal those of eval, and are drawn on the page', async () => {
  const watch = ['--steps', '6', '--eval-every', '2', '--eval-split', 'test'];
  const { code, stdout, stderr } = await runNode(trainArgs('watched', ...watch), { cwd: folder });
  assert.equal(code, 0, stderr);
  assert.match(
    stderr,
    /^train 6\/6 steps, [\d,]+ tokens\/s, 0 s left, loss [\d.]+ \(kl [\d.]+, ce [\d.]+\), held-out KL@1 [\d.]+, top-1 [\d.]+ %, [\d.]+ MiB$/m,
  );
  const heldOut = await readLines('watched', 'held-out.jsonl');
  assert.deepEqual(
    heldOut.map(({ step }) => step),
    [0, 2, 4, 6],
  );
  assert.ok(heldOut.every(({ kl, rows: count }) => kl! > 0 && count === 4));
  assert.ok(heldOut.at(-1)!.kl! < heldOut[0]!.kl!, 'it learns');
  assert.match(stdout, /^held-out KL@1 +[\d.]+$/m);
  for (const [model, line] of [
    [student, heldOut[0]!],
    ['watched', heldOut[3]!],
  ] as const) {
    const evaluate = [
      'eval',
      '--task',
      'kd',
      '--cache',
      'cache',
      '--split',
      'test',
      '--model',
      model,
      '--out',
      'kd.json',
    ];
    const result = await runNode([bin, ...evaluate, '--threads', '1'], { cwd: folder });
    assert.equal(result.code, 0, result.stderr);
    const written = JSON.parse(await readFile(join(folder, 'kd.json'), 'utf8')) as {
      readonly kl: Record<string, number>;
      readonly ce: number;
      readonly top1Agreement: number;
    };
    assert.ok(Math.abs(written.kl['1']! - line.kl!) < 1e-6, `${written.kl['1']} against ${line.kl}`);
    assert.ok(Math.abs(written.ce - line.ce!) < 1e-6);
    assert.equal(written.top1Agreement, line.top1Agreement);
    await rm(join(folder, 'kd.json'));
  }
  const page = await readFile(join(folder, 'watched/run.html'), 'utf8');
  assert.match(page, /finished at step 6 of 6/);
  assert.equal(page.match(/<svg/g)?.length, 5);
  for (const label of ['held-out KL@1', 'top-1 agreement', 'gradient norm', 'learning rate']) {
    assert.ok(page.includes(label), label);
  }
  assert.ok(!page.includes('http-equiv="refresh"'), 'a finished page stays');
  // Evaluation changes nothing of the training.
  const plain = await runNode(trainArgs('plain', '--steps', '6'), { cwd: folder });
  assert.equal(plain.code, 0, plain.stderr);
  const weights = await Promise.all(
    ['watched', 'plain'].map((out) => readFile(join(folder, out, 'model.safetensors'))),
  );
  assert.ok(weights[0]!.equals(weights[1]!));
});

test('the page of a run that goes on loads itself anew', unless(skip), async () => {
  const { child, finished } = startNode(trainArgs('going', ...LONG), { cwd: folder });
  let isSeen = false;
  const poll = setInterval(async () => {
    const page = await readFile(join(folder, 'going/run.html'), 'utf8').catch(() => '');
    // On a busy machine two reads may be under way, and a second signal would end the run at once.
    if (page === '' || isSeen) return;
    isSeen = true;
    clearInterval(poll);
    await writeFile(join(folder, 'seen.html'), page);
    child.kill('SIGINT');
  }, 50);
  const { code, stderr } = await finished;
  clearInterval(poll);
  assert.equal(code, 130, stderr);
  const seen = await readFile(join(folder, 'seen.html'), 'utf8');
  assert.match(seen, /running at step \d/);
  assert.match(seen, /<meta http-equiv="refresh" content="30">/);
  assert.match(await readFile(join(folder, 'going/run.html'), 'utf8'), /stopped at step \d/);
});

test('rows that the run would learn from are no held-out rows', async () => {
  const args = trainArgs('overlap', '--steps', '2', '--eval-every', '1', '--eval-split', 'train');
  const { code, stderr } = await runNode(args, { cwd: folder });
  assert.equal(code, 1);
  assert.match(stderr, /\[HELD_OUT_OVERLAP\]/);
});

test('a dry run prints what a run takes and writes nothing; one that does not fit says what to change and fails', async () => {
  const plan = (...more: string[]) => runNode(trainArgs('planned', '--dry-run', ...more), { cwd: folder });
  const fits = await plan('--json');
  assert.equal(fits.code, 0, fits.stderr);
  const { memory, rows, fits: doesFit } = JSON.parse(fits.stdout);
  assert.deepEqual([rows, doesFit], [8, true]);
  assert.ok(memory.items.some(({ what }: { what: string }) => what === 'weights'));
  assert.ok(!(await readdir(folder)).includes('planned'));
  const tight = await plan('--memory', String(memory.peakBytes - 1), '--recompute', 'never');
  assert.equal(tight.code, 1);
  assert.match(tight.stdout, /peak memory on the CPU, about +\d+ MiB\n.*\n\nIt does not fit/);
  const unused = await runNode(trainArgs('planned', '--memory', '1'), { cwd: folder });
  assert.equal(unused.code, 2);
  assert.match(unused.stderr, /SETTING_UNUSED.*--memory|--memory.*a run takes what it needs/s);
});
