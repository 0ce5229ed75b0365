import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { resolveSettings } from '@stillhouse/settings';
import { TRAINING_SETTINGS, trainStudent } from '@stillhouse/student-trainer';
import { BUILD_SETTINGS, buildTeacherCache } from '@stillhouse/teacher-inference';
import { makeTemporaryFolder, unless } from '@stillhouse/testing';
import { test } from 'vitest';
import { runPython, skipWithout } from './exchange.ts';

const GOLDEN = new URL('../golden/', import.meta.url).pathname;

test('PEFT loads our adapters, and the base with them is the merged student', {
  ...unless(skipWithout('torch', 'transformers', 'peft')),
}, async (t) => {
  const folder = await makeTemporaryFolder(t);
  const data = join(folder, 'rows.jsonl');
  const rows = Array.from({ length: 12 }, (_, row) =>
    Array.from({ length: 14 }, (_, i) => (row * 61 + i * i * 7) % 120),
  );
  await writeFile(
    data,
    rows
      .map(
        (inputIds) => `${JSON.stringify({ input_ids: inputIds, loss_mask: inputIds.map((_, i) => Math.min(i, 1)) })}\n`,
      )
      .join(''),
  );
  const runs = [
    { student: 'qwen2-tiny', adapterTensors: 2 * 7 * 2, given: {} },
    {
      student: 'llama-tiny',
      adapterTensors: 2 * 2,
      given: { loraAlpha: 12, loraTargets: ['o_proj', 'down_proj'], trainLayers: [1] },
    },
  ];
  for (const [i, { student, adapterTensors, given }] of runs.entries()) {
    const [base, cache, out] = [`${GOLDEN}${student}`, join(folder, `cache-${i}`), join(folder, `run-${i}`)];
    await buildTeacherCache(
      resolveSettings(BUILD_SETTINGS, { teacher: base, data, out: cache, labels: ['topk'], threads: 1 }),
    );
    const settings = {
      cache,
      student: base,
      out,
      labels: 'topk',
      steps: 8,
      batchTokens: 40,
      lr: 2e-2,
      loraRank: 4,
      threads: 1,
    };
    await trainStudent(resolveSettings(TRAINING_SETTINGS, { ...settings, ...given }));
    const ids = JSON.stringify([[3, 17, 99, 50, 7, 111]]);
    const { changed, ...differences } = JSON.parse(runPython('read_peft.py', base, join(out, 'adapter'), out, ids));
    assert.ok(changed > 0.05, `${student}: the adapters change logits by ${changed} at most`);
    assert.equal(differences.adapterTensors, adapterTensors, student);
    for (const name of ['adapterAgainstMerged', 'foldedAgainstMerged'])
      assert.ok(differences[name] < 1e-5, `${student}, ${name}: ${differences[name]}`);
  }
});
