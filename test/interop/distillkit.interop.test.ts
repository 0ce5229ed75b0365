import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  createDistillKitPacking,
  DISTILLKIT_PRESETS,
  type DistillKitConfig,
  exportDistillKit,
  importDistillKit,
  printDistillKitConfig,
} from '@stillhouse/cache-exchange';
import { openCache, verifyCache } from '@stillhouse/teacher-cache';
import { makeTemporaryFolder, randomUniforms, unless } from '@stillhouse/testing';
import { test } from 'vitest';
import { buildCache, distillKit, python, runPython, skipWithoutDistillKit } from './exchange.ts';

const V = 151_936;
const base = DISTILLKIT_PRESETS.recommended(V);
const bins = [
  { scaleDtype: 'float16', elementBits: 8, elements: 16 },
  { scaleDtype: 'bfloat16', elementBits: 3, elements: 21 },
  { scaleDtype: 'float32', elementBits: 1, elements: 10 },
] as const;

/** Configurations without a fitted curve, which fix every byte. */
const fixed: readonly DistillKitConfig[] = [
  DISTILLKIT_PRESETS.exact(V, 50),
  { ...DISTILLKIT_PRESETS.exact(2 ** 17, 7), exactDtype: 'bfloat16' },
  { ...DISTILLKIT_PRESETS.exact(2 ** 17 + 1, 1), exactDtype: 'float16' },
  { ...DISTILLKIT_PRESETS.exact(V, 20), exactDtype: 'float64', deltaEncoding: true },
  { ...base, k: 64, exactK: 10, terms: [], bins },
  { ...base, k: 64, exactK: 10, terms: [], bins, deltaEncoding: true },
  { ...base, k: 64, exactK: 0, terms: [], bins, errorDiffusion: true },
  { ...base, k: 64, exactK: 4, exactDtype: 'float32', terms: [], bins, errorDiffusion: true, deltaEncoding: true },
];
const fitted: readonly DistillKitConfig[] = [
  DISTILLKIT_PRESETS.budget(V),
  base,
  { ...base, normalizeT: true, exactDtype: 'float32', terms: [0, 1, 2, 'exp'] },
  { ...base, k: 60, bins, exactK: 1, terms: [0, 'sqrt'] },
  { ...base, k: 60, exactK: 4, terms: [0, 1, 'sqrt'], deltaEncoding: true, exactDtype: 'float32' },
];

const random = randomUniforms(7);
/** Logprobs as teachers have them: a few large, a long tail. */
function randomTopK(k: number) {
  const steps = Array.from({ length: k }, (_, i) => (3 * random()) / (i + 1));
  let logprob = -random();
  const logprobs = Float32Array.from(steps, (step) => {
    logprob -= step;
    return logprob;
  });
  const ids = new Set<number>();
  while (ids.size < k) ids.add(Math.floor(random() * 2 ** 17));
  return { ids: [...ids], logprobs };
}

test("our packing and DistillKit's own read each other", unless(skipWithoutDistillKit('yaml')), () => {
  const cases = [...fixed, ...fitted].map((config) => {
    const packing = createDistillKitPacking(config);
    const rows = Array.from({ length: 12 }, () => randomTopK(config.k));
    const packed = rows.map(({ ids, logprobs }) => {
      const [a, b] = [new Uint8Array(packing.logprobBytes), new Uint8Array(packing.indexBytes)];
      packing.pack(ids, logprobs, a, b);
      return [Buffer.from(a).toString('hex'), Buffer.from(b).toString('hex')] as const;
    });
    return { config, packing, rows, packed };
  });
  const document = cases.map(({ config, rows, packed }) => ({
    config: printDistillKitConfig(config),
    ids: rows.map(({ ids }) => ids),
    logprobs: rows.map(({ logprobs }) => [...logprobs]),
    logprobBytes: packed.map(([bytes]) => bytes),
    indexBytes: packed.map(([, bytes]) => bytes),
  }));
  const script = fileURLToPath(new URL('./pack_with_distillkit.py', import.meta.url));
  const results = JSON.parse(
    execFileSync(python!, [script, distillKit!], {
      input: JSON.stringify(document),
      maxBuffer: 1 << 28,
      encoding: 'utf8',
    }),
  );
  for (const [i, { config, packing, rows, packed }] of cases.entries()) {
    const { packedLogprobs, packedIndices, decoded, readLogprobs, readIds } = results[i];
    const name = `configuration ${i}`;
    assert.deepEqual(
      packedIndices,
      packed.map(([, bytes]) => bytes),
      name,
    );
    assert.deepEqual(
      readIds,
      rows.map(({ ids }) => ids),
      name,
    );
    if (config.terms.length === 0) {
      assert.deepEqual(
        packedLogprobs,
        packed.map(([bytes]) => bytes),
        name,
      );
    }
    const error = (read: readonly number[][]) =>
      Math.sqrt(
        read.flatMap((row, r) => row.map((value, j) => (value - rows[r]!.logprobs[j]!) ** 2)).reduce((a, b) => a + b),
      );
    // Their curve is fitted in float32; ours must not be worse.
    assert.ok(
      error(readLogprobs) <= error(decoded) * 1.001 + 1e-6,
      `${name}: ${error(readLogprobs)} ${error(decoded)}`,
    );
    for (const [r, hex] of packedLogprobs.entries()) {
      const ours = packing.unpackLogprobs(Buffer.from(hex, 'hex'));
      for (const [j, value] of ours.entries()) {
        const tolerance = config.terms.length === 0 ? 1e-6 : 2e-4;
        assert.ok(Math.abs(value - decoded[r][j]) <= tolerance, `${name}: ${value} ${decoded[r][j]}`);
      }
    }
  }
});

for (const positions of ['all', 'response'] as const) {
  test(`DistillKit reads an export of a cache with labels at ${positions}`, {
    ...unless(skipWithoutDistillKit('yaml', 'datasets')),
  }, async (t) => {
    const folder = await makeTemporaryFolder(t);
    buildCache(join(folder, 'cache'), { rows: 9, rowsPerShard: 4, maxTokens: 14, vocabSize: 30, k: 5, positions });
    const cache = await openCache(join(folder, 'cache'));
    await exportDistillKit(cache, join(folder, 'out'), DISTILLKIT_PRESETS.exact(30, 5));
    const rows = JSON.parse(runPython('read_distillkit.py', distillKit!, join(folder, 'out')));
    assert.equal(rows.length, 9);
    let labelled = 0;
    for (const [index, got] of rows.entries()) {
      const { row, positions: stored, topk } = await cache.readRow(index);
      assert.deepEqual(got.input_ids, [...row.inputIds]);
      assert.equal(got.ids.length, row.inputIds.length - 1);
      let start = 0;
      for (const [place, position] of stored.entries()) {
        const end = start + topk!.counts[place]!;
        assert.deepEqual(got.ids[position].slice(0, end - start), [...topk!.ids.subarray(start, end)]);
        assert.deepEqual(got.logprobs[position].slice(0, end - start), [...topk!.logprobs.subarray(start, end)]);
        assert.deepEqual(got.logprobs[position].slice(end - start), Array(5 - (end - start)).fill(-50));
        assert.equal(new Set(got.ids[position]).size, 5);
        start = end;
      }
      // Where DistillKit computes a loss there is a label, and it is a target.
      for (const [position, label] of got.labels.entries()) {
        if (label === -100) continue;
        labelled++;
        assert.equal(label, row.inputIds[position]);
        assert.equal(row.lossMask[position], 1);
        assert.ok(position === row.inputIds.length - 1 || stored.includes(position));
      }
    }
    assert.ok(labelled > 10);
    await cache.close();
  });
}

for (const [name, config, packed] of [
  ['exact', DISTILLKIT_PRESETS.exact(600, 40), false],
  ['recommended', DISTILLKIT_PRESETS.recommended(600), false],
  ['budget, rows packed together', DISTILLKIT_PRESETS.budget(600), true],
] as const) {
  test(`a capture that DistillKit's own code wrote is imported: ${name}`, {
    ...unless(skipWithoutDistillKit('yaml', 'datasets', 'click')),
  }, async (t) => {
    const folder = await makeTemporaryFolder(t);
    const [from, file, out] = [join(folder, 'capture'), join(folder, 'config.yaml'), join(folder, 'cache')];
    await writeFile(file, printDistillKitConfig(config));
    const rows = JSON.parse(
      runPython('capture_distillkit.py', distillKit!, from, file, ...(packed ? ['packed'] : []))
        .split('\n')
        .at(-2)!,
    );
    const teacher = {
      ...{
        kind: 'weights' as const,
        name: 'made up',
        architecture: 'none',
        weightsSha256: 'unstated',
        configSha256: 'unstated',
      },
      ...{ hiddenSize: 1, layerCount: 1, vocabSize: 600 },
    };
    const result = await importDistillKit({ from, out, teacher });
    assert.deepEqual((await verifyCache(out)).problems, []);
    const cache = await openCache(out);
    let compared = 0;
    for (let index = 0; index < cache.rowCount; index++) {
      const { row, positions, topk } = await cache.readRow(index);
      // A packed row has lost its last token, a row that was cut to fit more.
      const ids = [...row.inputIds];
      const source = rows.find(
        ({ input_ids }: { input_ids: readonly number[] }) => ids.join() === input_ids.slice(0, ids.length).join(),
      );
      assert.ok(source !== undefined, `row ${row.id}`);
      if (!packed) assert.equal(ids.length, source.input_ids.length);
      assert.deepEqual([...positions], [...Array(ids.length - 1).keys()]);
      for (const place of positions.keys()) {
        const start = topk!.counts.subarray(0, place).reduce((total, count) => total + count, 0);
        const end = start + topk!.counts[place]!;
        const want = source.logprobs[place]
          .map((logprob: number, i: number) => ({ id: source.ids[place][i], logprob }))
          .sort((a: { logprob: number }, b: { logprob: number }) => b.logprob - a.logprob);
        const byId = new Map<number, number>(
          want.map(({ id, logprob }: { id: number; logprob: number }) => [id, logprob]),
        );
        const shift = topk!.logprobs[start]! - byId.get(topk!.ids[start]!)!;
        assert.ok(Math.abs(shift) <= result.largestShiftNats + 1e-4, `${shift}`);
        assert.equal(end - start, want.length);
        for (let i = start; i < end; i++) {
          const difference = topk!.logprobs[i]! - shift - byId.get(topk!.ids[i]!)!;
          // The last entries of a curve that lies too low are raised to one level.
          if (topk!.logprobs[i] === topk!.logprobs[end - 1] && difference > 0) {
            assert.ok(difference <= result.largestShiftNats + 1e-4, `${difference}`);
          } else assert.ok(Math.abs(difference) < (name === 'exact' ? 1e-6 : 3e-4), `${difference}`);
        }
        compared++;
      }
    }
    assert.ok(compared > 50);
    if (name === 'exact') assert.equal(result.rescaled, 0);
    await cache.close();
  });
}
