import assert from 'node:assert/strict';
import { cp, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { readModelConfig } from '@stillhouse/checkpoint';
import { makeTemporaryFolder } from '@stillhouse/testing';
import { measureActivations } from './activation-store.ts';
import { planBackward } from './backward-plan.ts';
import { trainStudent } from './index.ts';
import { writeSyntheticCache } from './testing/synthetic-cache.ts';
import { stopAt, TINY_STUDENT, TINY_TEACHER, tinyRun } from './testing/tiny-run.ts';

test('a run over rows that attend in blocks, cut short and resumed, equals a straight one bit for bit', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const cache = join(folder, 'cache');
  await writeSyntheticCache(cache, { ...TINY_TEACHER, rows: 3, rowTokens: 515 });
  const student = join(folder, 'student');
  await cp(TINY_STUDENT, student, { recursive: true });
  const json = JSON.parse(await readFile(join(student, 'config.json'), 'utf8')) as Record<string, unknown>;
  await writeFile(join(student, 'config.json'), JSON.stringify({ ...json, max_position_embeddings: 1024 }));
  const run = (name: string, stop?: number, resume = false) => {
    const settings = tinyRun({ student, cache, out: join(folder, name), steps: 2, checkpointEvery: 1, resume });
    return trainStudent(settings, stop === undefined ? {} : stopAt(stop));
  };
  await run('straight');
  await run('cut', 1);
  await run('cut', undefined, true);
  const [straight, cut] = await Promise.all(
    ['straight', 'cut'].map((name) => readFile(join(folder, name, 'model.safetensors'))),
  );
  assert.deepEqual(cut, straight);
});

test('what is kept of rows that attend in blocks grows with their length, of one block with its square', async () => {
  const config = await readModelConfig(TINY_STUDENT);
  const plan = planBackward(config, () => true);
  const bytes = (length: number) => measureActivations(config, plan, 1, length);
  assert.equal(bytes(4096), 2 * bytes(2048));
  assert.ok(bytes(512) > 3 * bytes(256));
  assert.ok(bytes(1024) < bytes(512));
});
