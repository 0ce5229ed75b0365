import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { resolveSettings } from '@stillhouse/settings';
import { openCache } from '@stillhouse/teacher-cache';
import { makeTemporaryFolder } from '@stillhouse/testing';
import { test } from 'vitest';
import { checkTraining, TRAINING_SETTINGS, type TrainingSettings, trainStudent } from '../index.ts';
import { writeSyntheticCache } from '../testing/synthetic-cache.ts';

const STUDENT = new URL('../../../../test/golden/qwen2-tiny', import.meta.url).pathname;

const settings = (given: Partial<TrainingSettings>): TrainingSettings =>
  resolveSettings(TRAINING_SETTINGS, { student: STUDENT, labels: 'topk', batchTokens: 24, threads: 1, ...given });

test('on a tail that is unknown a student learns with a bucket, and never with the tail', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const [cache, out] = [join(folder, 'cache'), join(folder, 'run')];
  const labels = { topk: { k: 12, temperatures: [], tail: 'unknown' }, hidden: null, head: false } as const;
  const teacher = { kind: 'service', name: 'large-v1', vocabSize: 512 } as const;
  const made = { vocabSize: 512, hiddenSize: 24, rows: 10, k: 12, temperatures: [] };
  await writeSyntheticCache(cache, made, { teacher, labels });
  for (const temperature of [1, 2]) {
    await assert.rejects(checkTraining(settings({ cache, out, temperature })), {
      code: 'TAIL_UNKNOWN',
      message: /--tail tail: .*Use --tail bucket/,
    });
  }
  await trainStudent(settings({ cache, out, steps: 2, tail: 'bucket', temperature: 2 }));
  assert.ok(existsSync(join(out, 'model.safetensors')));
});

test('a check finds what training would refuse, and leaves no trace; runs of one process share what was opened', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const cache = join(folder, 'cache');
  await writeSyntheticCache(cache, { vocabSize: 512, hiddenSize: 24, rows: 10, k: 12, temperatures: [1, 2] });
  const out = join(folder, 'run');
  const opened = await openCache(cache);
  let calls = 0;
  const shared = {
    openCache: async (location: string) => {
      assert.equal(location, cache);
      calls += 1;
      return { ...opened, close: async () => {} };
    },
    finiteStudents: new Set<string>(),
  };
  const check = (given: Partial<TrainingSettings>) => checkTraining(settings({ cache, out, ...given }), shared);
  const found = await check({ temperature: 1, steps: 2 });
  assert.deepEqual(found, { cacheDigest: opened.digest, rows: 10, steps: 2 });
  assert.deepEqual([...shared.finiteStudents], [STUDENT]);
  await assert.rejects(check({ temperature: 3 }), { code: 'TEMPERATURE_NOT_IN_GRID' });
  await assert.rejects(check({ split: 'absent' }), { code: 'NO_TRAINING_ROWS' });
  await assert.rejects(check({ evalEvery: 2, evalCache: cache }), { code: 'HELD_OUT_OVERLAP' });
  await assert.rejects(checkTraining(settings({ cache, out, student: join(folder, 'absent') })), /absent/);
  assert.equal(existsSync(out), false);

  const before = calls;
  await trainStudent(settings({ cache, out, steps: 2 }), {}, shared);
  assert.equal(calls, before + 1);
  const alone = join(folder, 'alone');
  await trainStudent(settings({ cache, out: alone, steps: 2 }));
  const [one, two] = await Promise.all([out, alone].map((run) => readFile(join(run, 'model.safetensors'))));
  assert.ok(one!.equals(two!));
  await opened.close();
});
