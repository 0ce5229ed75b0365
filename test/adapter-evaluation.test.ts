import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { openHeldOut } from '@stillhouse/evaluation';
import { loadDecoder } from '@stillhouse/model-runner';
import { openEngine } from '@stillhouse/runtime';
import { resolveSettings } from '@stillhouse/settings';
import { TRAINING_SETTINGS, trainStudent } from '@stillhouse/student-trainer';
import { BUILD_SETTINGS, buildTeacherCache } from '@stillhouse/teacher-inference';
import { makeTemporaryFolder } from '@stillhouse/testing';
import { test } from 'vitest';

const GOLDEN = new URL('./golden/', import.meta.url).pathname;

test('evaluation while adapters train sees the student that is saved', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const caches: string[] = [];
  for (const which of [0, 1]) {
    const rows = Array.from({ length: 6 }, (_, row) =>
      Array.from({ length: 12 }, (_, i) => (which + row * 61 + i * i * 7) % 500),
    );
    const data = join(folder, `rows-${which}.jsonl`);
    const lines = rows.map((ids) => JSON.stringify({ input_ids: ids, loss_mask: ids.map((_, i) => Math.min(i, 1)) }));
    await writeFile(data, `${lines.join('\n')}\n`);
    caches.push(join(folder, `cache-${which}`));
    const teacher = `${GOLDEN}qwen2-tiny-untied`;
    const given = { teacher, data, out: caches[which], labels: ['topk'], temperatures: [1, 2], threads: 1 };
    await buildTeacherCache(resolveSettings(BUILD_SETTINGS, given));
  }
  const [student, out] = [`${GOLDEN}qwen2-tiny`, join(folder, 'run')];
  const [cache, evalCache] = caches;
  const rows = await openHeldOut({
    cache: evalCache!,
    split: undefined,
    limit: undefined,
    model: student,
    temperatures: [1],
    batchSize: 4,
    chunkPositions: 16,
  });
  t.onTestFinished(() => rows.close());
  const evaluate: Parameters<typeof trainStudent>[1] = {
    evaluate: async (engine, model) => {
      const { kl, ...rest } = await rows.evaluate(engine, model);
      return { ...rest, kl: kl['1']! };
    },
  };
  const given = { student, cache, out, evalCache, evalEvery: 3, labels: 'topk', steps: 6, batchTokens: 30, lr: 1e-2 };
  // Only the upper layer is adapted, so that both kinds of layer are run.
  const result = await trainStudent(
    resolveSettings(TRAINING_SETTINGS, { ...given, loraRank: 4, trainLayers: [1], threads: 1 }),
    evaluate,
  );
  const engine = await openEngine({ threads: 1 });
  t.onTestFinished(() => engine.close());
  const [saved, before] = [await loadDecoder(engine, out), await loadDecoder(engine, student)];
  const [after, start] = [await rows.evaluate(engine, saved), await rows.evaluate(engine, before)];
  const { kl, ce } = result.lastHeldOut!;
  assert.ok(Math.abs(kl - after.kl['1']!) < 1e-5, `KL ${kl} against ${after.kl['1']}`);
  assert.ok(Math.abs(ce - after.ce) < 1e-5, `CE ${ce} against ${after.ce}`);
  assert.ok(Math.abs(after.ce - start.ce) > 1e-3, 'the run changed the student');
});
