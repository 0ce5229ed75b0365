/** A cache of coded states from end to end: the same student learns from it what it learns from exact states. */
import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { EVALUATION_SETTINGS, evaluateModel, type KdResult } from '@stillhouse/evaluation';
import { resolveSettings } from '@stillhouse/settings';
import {
  INIT_SETTINGS,
  initStudent,
  type StepMetrics,
  TRAINING_SETTINGS,
  trainStudent,
} from '@stillhouse/student-trainer';
import { describeSize, readManifest, verifyCache } from '@stillhouse/teacher-cache';
import { BUILD_SETTINGS, buildTeacherCache } from '@stillhouse/teacher-inference';
import { test } from 'vitest';

const demo = new URL('../data/demo/', import.meta.url).pathname;
const teacher = join(demo, 'teacher');

test('coded states with top-k: verified, under half the bytes, the same losses and held-out KL as exact states', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'coded-states-'));
  try {
    const data = join(folder, 'data.jsonl');
    const lines = (await readFile(join(demo, 'distil.jsonl'), 'utf8')).split('\n').slice(0, 160);
    await writeFile(data, `${lines.join('\n')}\n`);
    const student = join(folder, 'student');
    await initStudent(
      resolveSettings(INIT_SETTINGS, {
        like: teacher,
        out: student,
        seed: 3,
        layers: 2,
        hidden: 64,
        heads: 4,
        kvHeads: 2,
        intermediate: 96,
      }),
    );
    const results = new Map<
      string,
      { readonly losses: readonly number[]; readonly kl: number; readonly bytes: number }
    >();
    for (const [name, labels] of [
      ['exact', { labels: ['hidden'], hiddenDtype: 'f32' }],
      ['coded', { labels: ['topk', 'hidden'], topK: 8, hiddenDtype: 'coded', hiddenBytes: 60 }],
    ] as const) {
      const cache = join(folder, name);
      await buildTeacherCache(
        resolveSettings(BUILD_SETTINGS, { teacher, data, out: cache, rowsPerShard: 64, ...labels }),
      );
      assert.deepEqual((await verifyCache(cache)).problems, []);
      const out = join(folder, `${name}-run`);
      await trainStudent(
        resolveSettings(TRAINING_SETTINGS, {
          cache,
          student,
          out,
          labels: 'full',
          temperature: 2,
          alpha: 1,
          steps: 4,
          batchTokens: 600,
          lr: 1e-3,
          hiddenWeight: 0.5,
        }),
      );
      const metrics = (await readFile(join(out, 'metrics.jsonl'), 'utf8')).trim().split('\n');
      const kd = (await evaluateModel(
        resolveSettings(EVALUATION_SETTINGS, { model: out, task: 'kd', cache, out: join(folder, `${name}.json`) }),
      )) as KdResult;
      const size = describeSize(await readManifest(cache)).groups.find(({ group }) => group === 'hidden-final')!;
      results.set(name, {
        losses: metrics.map((line) => (JSON.parse(line) as StepMetrics).loss),
        kl: kd.kl['2']!,
        bytes: size.bytesPerPosition!,
      });
    }
    const [exact, coded] = [results.get('exact')!, results.get('coded')!];
    coded.losses.forEach((loss, i) => {
      assert.ok(
        Math.abs(loss / exact.losses[i]! - 1) < 0.01,
        `step ${i + 1}: ${loss}, with exact states ${exact.losses[i]}`,
      );
    });
    assert.ok(Math.abs(coded.kl / exact.kl - 1) < 0.01, `held-out KL ${coded.kl}, with exact states ${exact.kl}`);
    assert.ok(coded.bytes < exact.bytes / 2, `${coded.bytes} bytes, exact ${exact.bytes}`);
  } finally {
    await rm(folder, { recursive: true });
  }
});
