import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { renameSync } from 'node:fs';
import { cp, mkdir, readdir, readFile, rename, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { isStillhouseError } from '@stillhouse/errors';
import { makeTemporaryFolder } from '@stillhouse/testing';
import { test } from 'vitest';
import { type TrainingEvents, trainStudent } from '../index.ts';
import { writeSyntheticCache } from '../testing/synthetic-cache.ts';
import { readMetrics, stopAt, TINY_STUDENT, TINY_TEACHER, tinyRun } from '../testing/tiny-run.ts';
import { openStepLog, readStepLog } from '../watch/metrics.ts';

const settings = tinyRun;

async function makeCache(t: Parameters<typeof makeTemporaryFolder>[0]) {
  const folder = await makeTemporaryFolder(t);
  const cache = join(folder, 'cache');
  await writeSyntheticCache(cache, TINY_TEACHER);
  return { folder, cache };
}

const readWeights = (out: string) => readFile(join(out, 'model.safetensors'));

const fails =
  (code: string, ...messages: readonly RegExp[]) =>
  (error: unknown) => {
    assert.ok(isStillhouseError(error, code), `${code}: ${error}`);
    for (const message of messages) assert.match(error.message, message);
    return true;
  };

test('a run that is stopped saves the step it was in, and goes on to the same student', async (t) => {
  const { folder, cache } = await makeCache(t);
  const [straight, cut] = [join(folder, 'straight'), join(folder, 'cut')];
  await trainStudent(settings({ cache, out: straight }));
  const stopped = await trainStudent(settings({ cache, out: cut }), stopAt(3));
  assert.deepEqual([stopped.isFinished, stopped.steps], [false, 3]);
  assert.deepEqual(await readdir(join(cut, 'checkpoints')), ['step-00000002', 'step-00000003']);
  assert.ok(!(await readdir(cut)).some((name) => name === 'model.safetensors' || name === 'training.json'));
  const before = new AbortController();
  before.abort();
  const nothing = await trainStudent(settings({ cache, out: cut, resume: true }), { stopSignal: before.signal });
  assert.deepEqual([nothing.isFinished, nothing.steps], [false, 3]);
  const resumed = await trainStudent(settings({ cache, out: cut, resume: true }));
  assert.equal(resumed.isFinished, true);
  assert.deepEqual(await readWeights(cut), await readWeights(straight));
  assert.deepEqual(
    await readFile(join(cut, 'recipe.json'), 'utf8'),
    (await readFile(join(straight, 'recipe.json'), 'utf8')).replace(straight, cut),
  );
});

test('a damaged checkpoint is refused by name, the one before is offered and leads to the same student', async (t) => {
  const { folder, cache } = await makeCache(t);
  const [straight, cut] = [join(folder, 'straight'), join(folder, 'cut')];
  await trainStudent(settings({ cache, out: straight }));
  await trainStudent(settings({ cache, out: cut }), stopAt(5));
  const checkpoint = join(cut, 'checkpoints/step-00000005');
  const kept = join(folder, 'kept');
  await cp(checkpoint, kept, { recursive: true });
  const files = (await readdir(checkpoint)).sort();
  assert.deepEqual(files, [
    'checksums.json',
    'first-moments.safetensors',
    'second-moments.safetensors',
    'state.json',
    'weights.safetensors',
  ]);
  const flip = async (path: string) => {
    const bytes = await readFile(path);
    bytes[bytes.length - 3]! ^= 4;
    await writeFile(path, bytes);
  };
  for (const file of files) {
    for (const damage of [flip, (path: string) => truncate(path, 30), (path: string) => rm(path)]) {
      await damage(join(checkpoint, file));
      await assert.rejects(
        trainStudent(settings({ cache, out: cut, resume: true })),
        fails('CHECKPOINT_DAMAGED', new RegExp(`step-00000005/${file}: `), /--resume --resume-step 4/),
        `${file} ${damage}`,
      );
      await rm(checkpoint, { recursive: true });
      await cp(kept, checkpoint, { recursive: true });
    }
  }
  await flip(join(checkpoint, 'weights.safetensors'));
  await assert.rejects(
    trainStudent(settings({ cache, out: cut, resume: true, resumeStep: 3 })),
    fails('CHECKPOINT_ABSENT', /one of 4, 5, got 3/),
  );
  await assert.rejects(
    trainStudent(settings({ cache, out: cut, resumeStep: 4 })),
    fails('SETTING_MISSING', /--resume/),
  );
  // Stopped before it is past the damaged one: that one is of a continuation that was given up.
  await trainStudent(settings({ cache, out: cut, resume: true, resumeStep: 4, checkpointEvery: 1 }), stopAt(5));
  assert.deepEqual(await readdir(join(cut, 'checkpoints')), ['step-00000004', 'step-00000005']);
  await trainStudent(settings({ cache, out: cut, resume: true }));
  assert.deepEqual(await readWeights(cut), await readWeights(straight));
  assert.deepEqual(
    (await readMetrics(cut)).map(({ step }) => step),
    [1, 2, 3, 4, 5, 6],
  );
});

test('later checkpoints go once an earlier one was gone on from', async (t) => {
  const { folder, cache } = await makeCache(t);
  const out = join(folder, 'out');
  await trainStudent(settings({ cache, out, checkpointEvery: 1, keepCheckpoints: 4 }), stopAt(5));
  assert.equal((await readdir(join(out, 'checkpoints'))).length, 4);
  await mkdir(join(out, 'checkpoints/.step-00000009.partial'));
  await trainStudent(
    settings({ cache, out, resume: true, resumeStep: 2, checkpointEvery: 1, keepCheckpoints: 4 }),
    stopAt(3),
  );
  assert.deepEqual(await readdir(join(out, 'checkpoints')), ['step-00000002', 'step-00000003']);
});

test('a run goes on with another split of its steps, to float tolerance, and where cache and student have moved', async (t) => {
  const { folder, cache } = await makeCache(t);
  const [straight, cut] = [join(folder, 'straight'), join(folder, 'cut')];
  const common = { labels: 'full', batchTokens: 60, accumulate: 1, chunkPositions: 64 } as const;
  await trainStudent(settings({ ...common, cache, out: straight }));
  await trainStudent(settings({ ...common, cache, out: cut }), stopAt(3));
  const [moved, student] = [join(folder, 'moved'), join(folder, 'student')];
  await rename(cache, moved);
  await cp(TINY_STUDENT, student, { recursive: true });
  const other = { accumulate: 3, chunkPositions: 5, recompute: 'always', resume: true } as const;
  await trainStudent(settings({ ...common, ...other, cache: moved, student, out: cut }));
  const [one, two] = [await readMetrics(straight), await readMetrics(cut)];
  assert.equal(two.length, 6);
  one.forEach((line, i) => {
    for (const key of ['loss', 'kl', 'ce', 'gradNorm'] as const) {
      const [a, b] = [line[key], two[i]![key]];
      assert.ok(Math.abs(a - b) < 2e-5 * Math.max(1, a), `step ${line.step} ${key}: ${a} against ${b}`);
    }
  });
});

test('a checkpoint of another cache or another student is refused', async (t) => {
  const { folder, cache } = await makeCache(t);
  const out = join(folder, 'out');
  const other = join(folder, 'other');
  await writeSyntheticCache(other, { ...TINY_TEACHER, rows: 9 });
  await trainStudent(settings({ cache, out }), stopAt(2));
  await assert.rejects(
    trainStudent(settings({ cache: other, out, resume: true })),
    fails('CHECKPOINT_MISMATCH', /another cache/),
  );
  const student = join(folder, 'student');
  await cp(TINY_STUDENT, student, { recursive: true });
  const config = JSON.parse(await readFile(join(TINY_STUDENT, 'config.json'), 'utf8')) as Record<string, unknown>;
  await writeFile(join(student, 'config.json'), JSON.stringify({ ...config, rope_theta: 20000 }));
  await assert.rejects(
    trainStudent(settings({ cache, student, out, resume: true })),
    fails('CHECKPOINT_MISMATCH', /another student/),
  );
  // Without a checkpoint there is nothing that knows them but their paths.
  await rm(join(out, 'checkpoints'), { recursive: true });
  await assert.rejects(
    trainStudent(settings({ cache: other, out, resume: true })),
    fails('RECIPE_DIFFERS', /cache: have/),
  );
});

test('an overflow names step, rows and the first layer, and keeps what was saved', async (t) => {
  const { folder, cache } = await makeCache(t);
  const out = join(folder, 'out');
  // The first update is whole; then the rate throws the weights out of range.
  await assert.rejects(
    trainStudent(settings({ cache, out, lr: 1e37, warmupSteps: 1, steps: 8, checkpointEvery: 1, weightDecay: 0 })),
    fails('TRAINING_DIVERGED', /step \d/),
  );
  const files = await readdir(join(out, 'checkpoints')).catch(() => []);
  assert.ok(
    files.every((name) => /^step-\d{8}$/.test(name)),
    files.join(),
  );
  assert.ok(!(await readdir(out)).includes('model.safetensors'));
  const again = join(folder, 'again');
  const student = join(folder, 'student');
  await cp(TINY_STUDENT, student, { recursive: true });
  const weights = await readFile(join(student, 'model.safetensors'));
  const headerBytes = Number(weights.readBigUInt64LE());
  const header = JSON.parse(weights.subarray(8, 8 + headerBytes).toString('utf8')) as Record<
    string,
    { readonly data_offsets: readonly [number, number] }
  >;
  const [begin, end] = header['model.layers.1.mlp.down_proj.weight']!.data_offsets;
  for (let at = begin; at < end; at += 4) weights.writeFloatLE(3e38, 8 + headerBytes + at);
  await writeFile(join(student, 'model.safetensors'), weights);
  await assert.rejects(
    trainStudent(settings({ cache, student, out: again })),
    fails('TRAINING_DIVERGED', /step 1: .*\(rows row-\d.*\); first in layer 1.*No checkpoint was saved/),
  );
});

test('a cache file that vanishes stops the run by name; back in its place the run goes on', async (t) => {
  const { folder, cache } = await makeCache(t);
  const [straight, out] = [join(folder, 'straight'), join(folder, 'out')];
  const common = { cache, batchTokens: 1, steps: 10, checkpointEvery: 1 };
  await trainStudent(settings({ ...common, out: straight }));
  const [shards, away] = [join(cache, 'shards'), join(folder, 'away')];
  await mkdir(away);
  const topk = (await readdir(shards)).filter((name) => name.includes('topk'));
  assert.equal(topk.length, 4);
  // A step holds one row: after the first, two shards at most are open.
  const vanish: TrainingEvents = {
    onStep: ({ step }) => {
      if (step === 1) for (const name of topk) renameSync(join(shards, name), join(away, name));
    },
  };
  await assert.rejects(
    trainStudent(settings({ ...common, out }), vanish),
    fails('CACHE_FILE_MISSING', /topk\.arrow/, /The checkpoint of step \d is whole: go on from it with --resume/),
  );
  await assert.rejects(trainStudent(settings({ ...common, out, resume: true })), fails('CACHE_FILE_MISSING'));
  for (const name of topk) await rename(join(away, name), join(shards, name));
  await trainStudent(settings({ ...common, out, resume: true }));
  assert.deepEqual(await readWeights(out), await readWeights(straight));
});

test('a full disk: the error names the file, the checkpoint before is whole and the run goes on with more room', async (t) => {
  const { folder, cache } = await makeCache(t);
  const [straight, disk] = [join(folder, 'straight'), join(folder, 'disk')];
  await trainStudent(settings({ cache, out: straight }));
  const checkpointBytes = (await readFile(join(straight, 'checkpoints/step-00000004/weights.safetensors'))).length * 3;
  await mkdir(disk);
  const size = Math.ceil((checkpointBytes * 1.5) / 1024);
  if (spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${size}k`, 'tmpfs', disk]).status !== 0) {
    return t.skip('mounting a small tmpfs needs root');
  }
  try {
    const out = join(disk, 'out');
    await assert.rejects(
      trainStudent(settings({ cache, out })),
      fails('DISK_FULL', /step-00000004.*The checkpoint of step 2 is whole: go on from it with --resume/s),
    );
    assert.deepEqual(await readdir(join(out, 'checkpoints')), ['step-00000002']);
    assert.equal(spawnSync('mount', ['-o', 'remount,size=64m', disk]).status, 0);
    await trainStudent(settings({ cache, out, resume: true }));
    assert.deepEqual(await readWeights(out), await readWeights(straight));
  } finally {
    spawnSync('umount', [disk]);
  }
});

test('settings of evaluation during training that make no sense are refused before anything is written', async (t) => {
  const { folder, cache } = await makeCache(t);
  const out = join(folder, 'out');
  const evaluate = () => assert.fail('no step is taken');
  for (const [code, given] of [
    ['SETTING_UNUSED', { evalSplit: 'test' }],
    ['SETTING_MISSING', { evalEvery: 2 }],
    ['HELD_OUT_OVERLAP', { evalEvery: 2, evalSplit: 'test' }],
    ['HELD_OUT_OVERLAP', { evalEvery: 2, evalSplit: 'test', split: 'test' }],
    ['HELD_OUT_OVERLAP', { evalEvery: 2, evalCache: cache, split: 'train' }],
  ] as const) {
    await assert.rejects(trainStudent(settings({ cache, out, ...given }), { evaluate }), fails(code));
  }
  await assert.rejects(
    trainStudent(settings({ cache, out, split: 'train', evalSplit: 'test', evalEvery: 2 })),
    fails('EVALUATOR_ABSENT'),
  );
  assert.ok(!(await readdir(folder)).includes('out'));
});

test('a log that does not fit says so, and is whole again when it is opened with more room', async (t) => {
  const disk = await makeTemporaryFolder(t);
  if (spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', disk]).status !== 0) {
    return t.skip('mounting a small tmpfs needs root');
  }
  try {
    const log = await openStepLog<{ step: number }>(disk, 'log.jsonl', 0);
    let step = 1;
    // The first line takes a block for itself, which then has room for more of them.
    await log.append({ step });
    const filler = join(disk, 'filler');
    await assert.rejects(writeFile(filler, Buffer.alloc(1 << 17)), { code: 'ENOSPC' });
    const fill = async () => {
      for (;;) await log.append({ step: ++step });
    };
    await assert.rejects(fill(), fails('DISK_FULL', /log\.jsonl/));
    await log.close();
    assert.ok(step > 100);
    await rm(filler);
    const again = await openStepLog<{ step: number }>(disk, 'log.jsonl', step - 1);
    assert.equal(again.newest, step - 1);
    await again.append({ step });
    await again.close();
    const lines = await readStepLog<{ step: number }>(disk, 'log.jsonl');
    assert.deepEqual(
      lines.map((line) => line.step),
      Array.from({ length: step }, (_, i) => i + 1),
    );
  } finally {
    spawnSync('umount', [disk]);
  }
});
