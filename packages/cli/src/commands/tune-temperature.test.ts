import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { KdResult } from '@stillhouse/evaluation';
import { planTuning, shareInputs, type TemperatureChoice, TUNING_SETTINGS } from '@stillhouse/experiments';
import { resolveSettings } from '@stillhouse/settings';
import { estimateRatio } from '@stillhouse/statistics';
import { makeTemporaryFolder, runNode, writeDataRows } from '@stillhouse/testing';
import { test } from 'vitest';

const bin = fileURLToPath(new URL('../../bin/stillhouse.js', import.meta.url));
const golden = (name: string) => fileURLToPath(new URL(`../../../../test/golden/${name}`, import.meta.url));

test('temperatures that the labels do not have are refused, all at once, before anything is trained', async (t) => {
  const folder = await makeTemporaryFolder(t);
  await writeDataRows(join(folder, 'rows.jsonl'), { trainRows: 6, length: 16, promptTokens: 6 });
  const cache = join(folder, 'cache');
  const build = ['--teacher', golden('qwen2-tiny-untied'), '--data', join(folder, 'rows.jsonl'), '--out', cache];
  const built = await runNode([bin, 'cache', 'build', ...build, '--top-k', '8']);
  assert.equal(built.code, 0, built.stderr);
  const shared = {
    cache,
    student: golden('qwen2-tiny'),
    split: 'train',
    evalSplit: 'test',
    batchTokens: 32,
    threads: 1,
  };
  const out = join(folder, 'tuned');
  const plan = async (given: object) =>
    shareInputs((inputs) => planTuning(resolveSettings(TUNING_SETTINGS, { ...shared, out, ...given }), inputs));
  const temperatures = async (given: object) => (await plan(given)).runs.map(({ settings }) => settings.temperature);

  // The exact tail is known at the cache's own; hidden states have all.
  assert.deepEqual(await temperatures({ labels: 'topk' }), [1, 2, 4]);
  assert.deepEqual(await temperatures({ labels: 'topk', tail: 'bucket' }), [1, 1.5, 2, 3, 4]);
  assert.deepEqual(await temperatures({ labels: 'full', temperatures: [8, 0.5] }), [8, 0.5]);
  await assert.rejects(plan({ labels: 'topk', temperatures: [1, 1.5, 2, 3] }), {
    code: 'TEMPERATURES_NOT_OF_LABELS',
    message: /--temperatures 1,1\.5,2,3: .*one of 1, 2, 4, got 1\.5, 3\. For 1\.5: Use --tail bucket/,
  });
  await assert.rejects(plan({ temperatures: [2] }), { code: 'TEMPERATURES_TOO_FEW', message: /got T = 2/ });
  await assert.rejects(plan({ labels: 'none' }), { code: 'SETTING_UNUSED', message: /--labels none/ });
  await assert.rejects(plan({ alpha: 0 }), { code: 'SETTING_UNUSED', message: /--alpha 0/ });
  await assert.rejects(plan({ evalSplit: undefined }), { code: 'SETTING_MISSING' });
  await assert.rejects(plan({ temperatures: [2, 2] }), { code: 'SWEEP_DUPLICATE' });

  const args = Object.entries({
    cache,
    student: shared.student,
    split: 'train',
    'eval-split': 'test',
    out,
    threads: 1,
  });
  const tune = () =>
    runNode([
      ...[bin, 'tune-temperature', ...args.flatMap(([flag, value]) => [`--${flag}`, String(value)])],
      ...['--temperatures', '1,4', '--seeds', '1,2', '--steps', '2', '--batch-tokens', '32', '--lr', '1e-2', '--json'],
    ]);
  const tuned = await tune();
  assert.equal(tuned.code, 0, tuned.stderr);
  const choice = JSON.parse(await readFile(join(out, 'temperature.json'), 'utf8')) as TemperatureChoice;
  assert.deepEqual((JSON.parse(tuned.stdout) as { readonly choice: unknown }).choice, choice);
  const readKl = async (temperature: number, seed: number) => {
    const path = join(out, 'runs', `seed=${seed}_temperature=${temperature}`, 'kd.json');
    return JSON.parse(await readFile(path, 'utf8')) as KdResult;
  };
  for (const { temperature, seeds, klAt1 } of choice.temperatures) {
    const [one, two] = await Promise.all([1, 2].map((seed) => readKl(temperature, seed)));
    assert.equal(seeds, 2);
    assert.ok(Math.abs(klAt1.mean - (one!.kl['1']! + two!.kl['1']!) / 2) < 1e-12);
    const ofOne = estimateRatio(one!.records.map(({ kl, targetTokens: n }) => ({ sum: kl['1']! * n, tokens: n })));
    assert.ok(Math.abs(ofOne.mean - one!.kl['1']!) < 1e-12);
  }
  const means = choice.temperatures.map(({ klAt1 }) => klAt1.mean);
  assert.equal(choice.recommended, [1, 4][means.indexOf(Math.min(...means))]);
  const page = await readFile(join(out, 'temperature.html'), 'utf8');
  assert.equal(page.match(/<svg/g)?.length, 3);
  assert.ok(page.includes(`T = ${choice.recommended} recommended`));
  const again = await tune();
  assert.equal(again.stderr.match(/done before/g)?.length, 4);
  assert.deepEqual((JSON.parse(again.stdout) as { readonly choice: unknown }).choice, choice);
});
