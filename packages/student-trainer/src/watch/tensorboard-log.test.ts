import assert from 'node:assert/strict';
import { appendFile, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { resolveSettings } from '@stillhouse/settings';
import { makeTemporaryFolder } from '@stillhouse/testing';
import { test } from 'vitest';
import { TRAINING_SETTINGS, type TrainingSettings, trainStudent } from '../index.ts';
import { writeSyntheticCache } from '../testing/synthetic-cache.ts';
import { stopAt } from '../testing/tiny-run.ts';
import { crc32c, encodeScalars, encodeVersion, readEvents } from './tensorboard-events.ts';
import { openTensorboardLog, TENSORBOARD_FOLDER } from './tensorboard-log.ts';

const STUDENT = new URL('../../../../test/golden/qwen2-tiny', import.meta.url).pathname;

test('checksums are CRC-32C by the examples of RFC 3720, B.4', () => {
  const check = (bytes: Uint8Array) => crc32c(bytes).toString(16);
  assert.equal(check(new Uint8Array(32)), '8a9136aa');
  assert.equal(check(new Uint8Array(32).fill(0xff)), '62a8ab43');
  assert.equal(check(Uint8Array.from({ length: 32 }, (_, i) => i)), '46dd794e');
  assert.equal(check(Uint8Array.from({ length: 32 }, (_, i) => 31 - i)), '113fdb5c');
});

test('a file is read as far as it is whole', () => {
  const first = Buffer.concat([encodeVersion(1.5), encodeScalars(3, [['train/loss', 0.25]], 2.5)]);
  const file = Buffer.concat([
    first,
    encodeScalars(
      2 ** 40,
      [
        ['a', 1],
        ['b', 2],
      ],
      3,
    ),
  ]);
  assert.deepEqual(
    readEvents(file).map(({ event }) => event),
    [
      { step: 0, tags: [] },
      { step: 3, tags: ['train/loss'] },
      { step: 2 ** 40, tags: ['a', 'b'] },
    ],
  );
  assert.equal(readEvents(file)[1]!.end, first.length);
  for (let length = 0; length < file.length; length++) {
    const whole = readEvents(file.subarray(0, length));
    assert.equal(whole.length, length < readEvents(file)[0]!.end ? 0 : length < first.length ? 1 : 2);
  }
  const damaged = Buffer.from(file);
  damaged[first.length - 6]! ^= 1;
  assert.equal(readEvents(damaged).length, 1);
});

/** Steps of each group over all files, in the order of their names. */
async function readSteps(out: string): Promise<Readonly<Record<string, readonly number[]>>> {
  const folder = join(out, TENSORBOARD_FOLDER);
  const steps: Record<string, number[]> = {};
  for (const name of (await readdir(folder)).sort()) {
    for (const { event } of readEvents(await readFile(join(folder, name)))) {
      const group = event.tags[0]?.split('/')[0];
      if (group === undefined) continue;
      steps[group] ??= [];
      steps[group].push(event.step);
    }
  }
  return steps;
}

test('each process begins a file; what was not saved is cut off, what is missing is filled in, nothing is there twice', async (t) => {
  const out = await makeTemporaryFolder(t);
  const lines = [1, 2, 3, 4].map((step) => ({ step, loss: 1 / step }));
  await writeFile(
    join(out, 'metrics.jsonl'),
    lines
      .slice(0, 2)
      .map((line) => `${JSON.stringify(line)}\n`)
      .join(''),
  );
  // A run that was begun without event files.
  const first = await openTensorboardLog(out, 2);
  for (const line of lines.slice(2)) await first.append('train', line);
  const heldOut = { step: 4, kl: 1 };
  await first.append('held-out', heldOut);
  await first.close();
  const [file] = await readdir(join(out, TENSORBOARD_FOLDER));
  assert.match(file!, /^events\.out\.tfevents\.\d{10}\./);
  assert.deepEqual(await readSteps(out), { train: [1, 2, 3, 4], 'held-out': [4] });
  // Killed within an event, resumed from a checkpoint of step 3.
  await appendFile(join(out, TENSORBOARD_FOLDER, file!), encodeScalars(5, [['train/loss', 1]], 0).subarray(0, 20));
  await writeFile(
    join(out, 'metrics.jsonl'),
    lines
      .slice(0, 3)
      .map((line) => `${JSON.stringify(line)}\n`)
      .join(''),
  );
  const second = await openTensorboardLog(out, 3);
  await second.append('train', lines[3]!);
  await second.close();
  assert.deepEqual(await readSteps(out), { train: [1, 2, 3, 4] });
  assert.equal((await readdir(join(out, TENSORBOARD_FOLDER))).length, 2);
});

test('a resumed run has one event for each line of its logs', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const cache = join(folder, 'cache');
  await writeSyntheticCache(cache, { vocabSize: 512, hiddenSize: 24, rows: 10, k: 12, temperatures: [1, 2] });
  const out = join(folder, 'run');
  const settings = (given: Partial<TrainingSettings>): TrainingSettings =>
    resolveSettings(TRAINING_SETTINGS, {
      ...{ cache, out, student: STUDENT, labels: 'topk', batchTokens: 24, threads: 1, steps: 5, checkpointEvery: 2 },
      ...{ tensorboard: true, ...given },
    });
  await trainStudent(settings({}), stopAt(3));
  await trainStudent(settings({ resume: true, resumeStep: 2 }));
  assert.deepEqual(await readSteps(out), { train: [1, 2, 3, 4, 5] });
});
