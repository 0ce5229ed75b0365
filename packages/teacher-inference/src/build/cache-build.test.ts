import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { cp, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { openSafetensors } from '@stillhouse/checkpoint';
import { dequantiseHidden, openCache, quantiseHidden, verifyCache } from '@stillhouse/teacher-cache';
import { expectClose, makeTemporaryFolder, startNode } from '@stillhouse/testing';
import { test } from 'vitest';
import { type BuildProgress, type BuildSettings, type BuildStart, buildTeacherCache, planBuild } from '../index.ts';
import { buildSettings, idRows, readTree, writeRows } from '../testing/build-folder.ts';
import { goldenFolder, readGoldenRows } from '../testing/golden-teachers.ts';

const DEMO_TOKENIZER = fileURLToPath(new URL('../../../../data/demo/tokenizer', import.meta.url));

test('a cache of a golden teacher holds what transformers computes', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const { config, rows, expected } = await readGoldenRows('qwen2-tiny-untied');
  const data = await writeRows(
    join(folder, 'rows.jsonl'),
    rows.map(({ id, inputIds, lossMask }) => ({
      id,
      input_ids: [...inputIds],
      loss_mask: [...lossMask],
      task: 'golden',
    })),
  );
  const out = join(folder, 'cache');
  const teacher = goldenFolder('qwen2-tiny-untied');
  const hiddenLayers = ['final', 1, 0] as const;
  const result = await buildTeacherCache(
    buildSettings({ teacher, data, out, hiddenLayers, topK: 20, hiddenDtype: 'f32' }),
  );
  assert.ok(result.tokensPerSecond > 0, 'speed is counted though nobody listens to the progress');
  const report = await verifyCache(out);
  assert.deepEqual(report.problems, []);
  const cache = await openCache(out);
  assert.equal(cache.digest, result.cacheDigest);
  assert.deepEqual(cache.description.labels, {
    topk: { k: 20, temperatures: [1, 2, 4], packing: 'zstd' },
    hidden: { layers: ['final', 0, 1], dtype: 'float32' },
    head: true,
  });
  assert.equal(cache.description.teacher?.name, 'qwen2-tiny-untied');
  assert.equal(cache.tokenizerFolder, null);
  const { vocabSize, hiddenSize } = config;
  let index = 0;
  for await (const { row, positions, topk, hidden } of cache.rows()) {
    const wanted = expected[index]!;
    assert.equal(row.id, rows[index++]!.id);
    assert.equal(row.task, 'golden');
    for (const [p, position] of positions.entries()) {
      const logits = wanted.logits!.subarray(position * vocabSize, (position + 1) * vocabSize);
      const total = Math.log(logits.reduce((sum, value) => sum + Math.exp(value), 0));
      const best = Array.from(logits, (value, id) => ({ id, logprob: value - total }))
        .sort((a, b) => b.logprob - a.logprob)
        .slice(0, 20);
      assert.deepEqual(
        Array.from(topk!.ids.subarray(p * 20, p * 20 + 20)),
        best.map(({ id }) => id),
      );
      const logprobs = topk!.logprobs.subarray(p * 20, p * 20 + 20);
      expectClose(
        logprobs,
        best.map(({ logprob }) => logprob),
        { absolute: 5e-5, where: 'logprobs' },
      );
    }
    for (const [layer, key] of [
      ['final', 'hidden.norm'],
      [0, 'hidden.0'],
      [1, 'hidden.1'],
    ] as const) {
      const states = Array.from(positions).flatMap((p) => [
        ...wanted[key]!.subarray(p * hiddenSize, (p + 1) * hiddenSize),
      ]);
      expectClose(dequantiseHidden(hidden!.get(layer)!), states, { absolute: 5e-5, where: key });
    }
  }
  assert.equal(index, rows.length);
  const source = await openSafetensors(join(teacher, 'model.safetensors'));
  assert.deepEqual(await cache.readOutputMatrix(), await source.read('lm_head.weight', 'float32'));
  await source.close();
  await cache.close();
});

test('int8 labels are what the format says of the float32 ones, and need no output matrix without final', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const data = await writeRows(join(folder, 'rows.jsonl'), idRows(9));
  const teacher = goldenFolder('qwen2-tiny');
  const build = async (name: string, change: Partial<BuildSettings>) => {
    const out = join(folder, name);
    await buildTeacherCache(
      buildSettings({ teacher, data, out, rowsPerShard: 4, hiddenLayers: [2], labels: ['hidden'], ...change }),
    );
    return openCache(out);
  };
  const [int8, float32] = [await build('int8', {}), await build('float32', { hiddenDtype: 'f32' })];
  assert.equal(int8.manifest.outputMatrix, null);
  assert.equal(int8.description.labels.topk, null);
  const rms = (await int8.hiddenScale(2)) as Float32Array;
  for (let row = 0; row < 9; row++) {
    const [stored, exact] = [await int8.readRow(row), await float32.readRow(row)];
    const states = exact.hidden!.get(2)!.values as Float32Array;
    const { layer, dtype, width, values, tokenScale } = stored.hidden!.get(2)!;
    const wanted = quantiseHidden(2, states, rms);
    assert.deepEqual({ layer, dtype, width }, { layer: 2, dtype: 'int8', width: 64 });
    assert.deepEqual([...values], [...wanted.values], `levels of row ${row}`);
    assert.deepEqual([...tokenScale!], [...wanted.tokenScale!], `scales of row ${row}`);
  }
  await int8.close();
  await float32.close();
});

const steps = 12;

/** A build of twelve shards; every label group and several layers. */
async function prepareLongBuild(folder: string) {
  const data = await writeRows(join(folder, 'rows.jsonl'), idRows(3 * steps - 1));
  return (name: string): BuildSettings =>
    buildSettings({
      teacher: goldenFolder('qwen2-tiny-untied'),
      data,
      out: join(folder, name),
      rowsPerShard: 3,
      labels: ['topk', 'sampled', 'hidden'],
      topK: 8,
      draws: 6,
      hiddenLayers: ['final', 1],
    });
}

test('a build killed ten times at random points ends with the bytes of one that was not', {
  timeout: 240_000,
}, async (t) => {
  const folder = await makeTemporaryFolder(t);
  const settingsOf = await prepareLongBuild(folder);
  await buildTeacherCache(settingsOf('straight'));
  const killed = settingsOf('killed');
  const script = fileURLToPath(new URL('../testing/run-build.ts', import.meta.url));
  const reached: number[] = [];
  for (let kill = 0; kill < 10; kill++) {
    const { child, finished } = startNode([script, JSON.stringify(killed)]);
    // Enough lines to get on by about a shard; sometimes none, and then the kill comes before the first step.
    const lines = Math.floor(Math.random() * 9);
    let seen = 0;
    child.stdout!.on('data', (text: string) => {
      seen += text.split('\n').length - 1;
      if (seen >= lines) child.kill('SIGKILL');
    });
    if (lines === 0) setTimeout(() => child.kill('SIGKILL'), 1500 * Math.random());
    const { signal, code, stderr } = await finished;
    assert.ok(signal === 'SIGKILL' || code === 0, `kill ${kill}: ${stderr}`);
    if (!existsSync(join(killed.out!, 'manifest.json'))) continue;
    const cache = await openCache(killed.out!, { allowIncomplete: true });
    reached.push(cache.manifest.shards.length);
    await cache.close();
    assert.deepEqual((await verifyCache(killed.out!)).problems, [], `after kill ${kill}`);
  }
  assert.ok(
    reached.some((shards) => shards > 0 && shards < steps),
    `shards after the kills: ${reached}`,
  );
  const result = await buildTeacherCache(killed);
  assert.equal(result.shards, steps);
  assert.deepEqual(readTree(killed.out!), readTree(settingsOf('straight').out!));
});

test('a complete cache is left alone; another configuration is refused with what differs', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const settingsOf = await prepareLongBuild(folder);
  const settings = settingsOf('cache');
  const first = await buildTeacherCache(settings);
  const before = readTree(settings.out!);
  const again = await buildTeacherCache(settings, { onPlan: () => assert.fail('there is nothing to do') });
  assert.deepEqual([first.wasComplete, again.wasComplete], [false, true]);
  assert.equal(again.cacheDigest, first.cacheDigest);
  await assert.rejects(buildTeacherCache({ ...settings, topK: 9, positions: 'all' }), (error: Error) => {
    assert.match(error.message, /labels\.topk\.k 8.*positions "response".*got.*labels\.topk\.k 9.*positions "all"/);
    return 'code' in error && error.code === 'CACHE_CONFIG_MISMATCH';
  });
  assert.deepEqual(readTree(settings.out!), before);
});

test('plan and progress say what is done', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const settings = (await prepareLongBuild(folder))('cache');
  const rows = idRows(3 * steps - 1);
  const tokens = rows.reduce((sum, { input_ids: ids }) => sum + ids.length, 0);
  const targets = rows.reduce((sum, { loss_mask: mask }) => sum + mask.filter((bit) => bit === 1).length, 0);
  const plan = await planBuild({ ...settings, dryRun: true });
  assert.deepEqual([plan.rows, plan.tokens, plan.targetTokens, plan.shards], [rows.length, tokens, targets, steps]);
  assert.equal(plan.longestRow.length, Math.max(...rows.map(({ input_ids: ids }) => ids.length)));
  assert.equal(plan.labelPositions, targets);
  assert.equal(existsSync(settings.out!), false, 'a dry run writes nothing');
  const all = await planBuild({ ...settings, positions: 'all' });
  assert.equal(all.labelPositions, tokens - rows.length);

  const starts: BuildStart[] = [];
  const reports: BuildProgress[] = [];
  const result = await buildTeacherCache(settings, {
    onPlan: (start) => starts.push(start),
    onProgress: (progress) => reports.push(progress),
  });
  const [{ shardsDone, shardsOfPartition, partition, device, weights, ...described }] = starts as [BuildStart];
  assert.deepEqual({ ...described }, plan);
  assert.deepEqual([starts.length, shardsDone, weights], [1, 0, 'resident']);
  assert.deepEqual([partition, shardsOfPartition], [null, steps]);
  assert.match(device!, /^cpu/);
  for (const [i, report] of reports.entries()) {
    const earlier = reports[i - 1];
    if (earlier !== undefined)
      assert.ok(report.tokensDone >= earlier.tokensDone && report.rowsDone >= earlier.rowsDone);
    assert.ok(report.tokensDone > 0 && report.tokensDone <= tokens && report.etaSeconds! >= 0);
  }
  assert.deepEqual(
    reports.filter(({ shard }) => shard === 2).map(({ stage }) => stage),
    [1, 2, 'readout', 'written'],
  );
  const { tokensDone, rowsDone, etaSeconds, shard } = reports.at(-1)!;
  assert.deepEqual([tokensDone, rowsDone, shard], [tokens, rows.length, steps]);
  assert.ok(etaSeconds! < 0.01);
  // The estimate leaves the tokenizer out, and the manifest; these tiny files are mostly headers.
  const sizeOf = (size: typeof plan.size, group: string) => size.groups.find((one) => one.group === group)!.sizeBytes;
  const head = sizeOf(result.size, 'head') / sizeOf(plan.size, 'head');
  assert.ok(head > 1 && head < 1.2, `head: ${head} times the estimate`);
});

test('rows alone need no teacher, and carry the tokenizer that encoded them', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const data = await writeRows(join(folder, 'rows.jsonl'), [
    { prompt: '12 + 30 = ', response: '42', split: 'train' },
    { text: 'Tom has 3 apples.' },
  ]);
  const out = join(folder, 'cache');
  const result = await buildTeacherCache(buildSettings({ data, out, labels: ['none'], tokenizer: DEMO_TOKENIZER }));
  assert.deepEqual((await verifyCache(out)).problems, []);
  const cache = await openCache(out);
  assert.equal(cache.description.teacher, null);
  assert.deepEqual(cache.description.labels, { topk: null, hidden: null, head: false });
  assert.deepEqual([cache.rowCount, result.rows], [2, 2]);
  const copied = await readFile(join(cache.tokenizerFolder!, 'tokenizer.json'));
  assert.deepEqual(copied, await readFile(join(DEMO_TOKENIZER, 'tokenizer.json')));
  const { row, topk } = await cache.readRow(0);
  assert.equal(row.split, 'train');
  assert.ok(row.lossMask.at(-1) === 1 && row.lossMask[1] === 0);
  assert.equal(topk, undefined);
  await cache.close();
});

test('text goes through the tokenizer in the teacher folder; ids need none', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const teacher = join(folder, 'teacher');
  await cp(goldenFolder('qwen2-tiny'), teacher, { recursive: true });
  await cp(DEMO_TOKENIZER, teacher, { recursive: true });
  const data = await writeRows(join(folder, 'rows.jsonl'), [{ text: 'Tom has 3 apples.' }]);
  const out = join(folder, 'cache');
  await buildTeacherCache(buildSettings({ teacher, data, out, labels: ['topk'], positions: 'all', topK: 512 }));
  assert.deepEqual((await verifyCache(out)).problems, []);
  const cache = await openCache(out);
  const { row, topk, hidden } = await cache.readRow(0);
  assert.equal(topk!.counts.length, row.inputIds.length - 1);
  assert.equal(hidden, undefined);
  assert.notEqual(cache.tokenizerFolder, null);
  await cache.close();
});

test('data that changes under the build is noticed', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const settings = (await prepareLongBuild(folder))('cache');
  const changed = () => writeFile(settings.data!, JSON.stringify(idRows(1)[0]));
  let changing: Promise<void> | undefined;
  const build = buildTeacherCache(settings, {
    onProgress: () => {
      changing ??= changed();
    },
  });
  await assert.rejects(build, { code: 'DATA_CHANGED' });
  await changing;
  const cache = await openCache(settings.out!, { allowIncomplete: true });
  assert.equal(cache.manifest.complete, false);
  await cache.close();
});
