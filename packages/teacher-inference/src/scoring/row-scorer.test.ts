import assert from 'node:assert/strict';
import { packSequences, padSequences } from '@stillhouse/model-runner';
import { openEngine } from '@stillhouse/runtime';
import {
  dequantiseHidden,
  type HiddenCodebook,
  type HiddenDtype,
  isCodebook,
  type LabelledRow,
  measureCodedBytes,
  quantiseHiddenGroups,
} from '@stillhouse/teacher-cache';
import { expectClose } from '@stillhouse/testing';
import { afterAll, test } from 'vitest';
import { GOLDEN_TEACHERS, goldenFolder, keepScales, readGoldenRows, scoreWith } from '../testing/golden-teachers.ts';
import type { ScoringOptions } from './row-scorer.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

const TEMPERATURES = [1, 2, 4, 3, 0.5];

function labelsOf(k: number, dtype: HiddenDtype): ScoringOptions['labels'] {
  return {
    topk: { k, temperatures: TEMPERATURES },
    hidden: { layers: ['final', 0, 1, 2], dtype },
    head: true,
  };
}

const logSumExp = (values: readonly number[]) => {
  const largest = Math.max(...values);
  return largest + Math.log(values.reduce((sum, value) => sum + Math.exp(value - largest), 0));
};

/** log p of every id at one position, from the golden's logits. */
function expectedLogprobs(logits: Float64Array, position: number, vocabSize: number): number[] {
  const row = Array.from(logits.subarray(position * vocabSize, (position + 1) * vocabSize));
  const total = logSumExp(row);
  return row.map((value) => value - total);
}

const pick = (array: Float64Array, positions: Int32Array, width: number) =>
  Array.from(positions).flatMap((p) => Array.from(array.subarray(p * width, (p + 1) * width)));

for (const name of GOLDEN_TEACHERS) {
  for (const policy of ['response', 'all'] as const) {
    test(`${name}, ${policy}: with k = V, logprobs, log Z and hidden states are those of transformers`, async () => {
      const { config, rows, expected } = await readGoldenRows(name);
      const { vocabSize, hiddenSize } = config;
      const options: ScoringOptions = { labels: labelsOf(vocabSize, 'float32'), positions: policy, batchTokens: 64 };
      const scored = await scoreWith(engine, goldenFolder(name), rows, options);
      for (const [i, { positions, topk, hidden, row }] of scored.entries()) {
        assert.equal(row, rows[i]);
        assert.ok(positions.length > 0);
        if (policy === 'all') assert.equal(positions.length, row.inputIds.length - 1);
        for (const [p, position] of positions.entries()) {
          const wanted = expectedLogprobs(expected[i]!.logits!, position, vocabSize);
          const ids = topk!.ids.subarray(p * vocabSize, (p + 1) * vocabSize);
          const logprobs = topk!.logprobs.subarray(p * vocabSize, (p + 1) * vocabSize);
          assert.deepEqual(
            Array.from(ids).sort((a, b) => a - b),
            Array.from({ length: vocabSize }, (_, id) => id),
          );
          assert.deepEqual(logprobs, Float32Array.from(logprobs).sort().reverse());
          expectClose(
            logprobs,
            Array.from(ids, (id) => wanted[id]!),
            { absolute: 5e-5, where: `${name} logprobs` },
          );
          const grid = TEMPERATURES.map((T) => logSumExp(wanted.map((value) => value / T)));
          const logZ = topk!.logZ.subarray(p * TEMPERATURES.length, (p + 1) * TEMPERATURES.length);
          expectClose(logZ, grid, { absolute: 5e-5, where: `${name} log Z` });
          assert.equal(logZ[0], 0);
        }
        for (const [layer, key] of [
          ['final', 'hidden.norm'],
          [0, 'hidden.0'],
          [1, 'hidden.1'],
          [2, 'hidden.2'],
        ] as const) {
          expectClose(dequantiseHidden(hidden!.get(layer)!), pick(expected[i]![key]!, positions, hiddenSize), {
            absolute: 5e-5,
            where: `${name} layer ${layer}`,
          });
        }
      }
    });
  }
}

test('int8 and float16 hidden states are as close as their formats allow', async () => {
  const { config, rows, expected } = await readGoldenRows('qwen2-tiny-untied');
  const { hiddenSize } = config;
  const scales = keepScales();
  const score = (dtype: HiddenDtype) =>
    scoreWith(engine, goldenFolder('qwen2-tiny-untied'), rows, {
      labels: { ...labelsOf(8, dtype), topk: null },
      positions: 'all',
      batchTokens: 4096,
      scales,
    });
  const [int8, float16] = [await score('int8'), await score('float16')];
  for (const [i, { positions }] of int8.entries()) {
    for (const [layer, key] of [
      ['final', 'hidden.norm'],
      [1, 'hidden.1'],
    ] as const) {
      const wanted = pick(expected[i]![key]!, positions, hiddenSize);
      const rms = scales.scale(layer) as Float32Array;
      const states = int8[i]!.hidden!.get(layer)!;
      const restored = dequantiseHidden(states, rms);
      restored.forEach((value, n) => {
        const step = states.tokenScale![Math.floor(n / hiddenSize)]! * rms[n % hiddenSize]!;
        assert.ok(Math.abs(value - wanted[n]!) <= 0.5 * step + 5e-5, `${layer} ${n}: ${value} for ${wanted[n]}`);
      });
      expectClose(dequantiseHidden(float16[i]!.hidden!.get(layer)!), wanted, {
        absolute: 5e-5,
        relative: 2 ** -11,
        where: `float16 ${layer}`,
      });
    }
    assert.equal(int8[i]!.topk, undefined);
  }
});

test('int8-groups states are what the cache package makes of float32 states', async () => {
  const { config, rows } = await readGoldenRows('qwen2-tiny-untied');
  const score = (dtype: HiddenDtype) =>
    scoreWith(engine, goldenFolder('qwen2-tiny-untied'), rows, {
      labels: { ...labelsOf(8, dtype), topk: null },
      positions: 'all',
      batchTokens: 4096,
    });
  const [grouped, exact] = [await score('int8-groups'), await score('float32')];
  for (const [i, { hidden }] of grouped.entries()) {
    for (const layer of ['final', 1] as const) {
      const states = exact[i]!.hidden!.get(layer)!.values as Float32Array;
      const wanted = quantiseHiddenGroups(layer, states, config.hiddenSize);
      const got = hidden!.get(layer)!;
      assert.deepEqual(
        [...got.values],
        [...wanted.values].map((value) => value + 0),
      );
      assert.deepEqual(got.groupScale, wanted.groupScale);
    }
  }
});

test('coded states come as near as the bytes allow, and the codebook is fixed by the first rows', async () => {
  const { config, rows, expected } = await readGoldenRows('qwen2-tiny-untied');
  const scales = keepScales();
  const score = (codedBytes: number, kept = scales) =>
    scoreWith(engine, goldenFolder('qwen2-tiny-untied'), rows, {
      labels: { ...labelsOf(8, 'coded'), hidden: { layers: ['final', 1], dtype: 'coded', codedBytes }, topk: null },
      positions: 'all',
      batchTokens: 4096,
      scales: kept,
    });
  const errorOf = (labelled: readonly LabelledRow[], kept: typeof scales) => {
    let [error, size] = [0, 0];
    for (const [i, { positions, hidden }] of labelled.entries()) {
      const wanted = pick(expected[i]!['hidden.norm']!, positions, config.hiddenSize);
      dequantiseHidden(hidden!.get('final')!, kept.scale('final')).forEach((value, n) => {
        error += (value - wanted[n]!) ** 2;
        size += wanted[n]! ** 2;
      });
    }
    return Math.sqrt(error / size);
  };
  const fine = await score(40);
  const codebook = scales.scale('final') as HiddenCodebook;
  assert.ok(isCodebook(codebook));
  let bytes = 0;
  let positions = 0;
  for (const row of fine) {
    bytes += measureCodedBytes(row.hidden!.get('final')!.values as Int16Array, codebook.coder);
    positions += row.positions.length;
  }
  assert.ok(Math.abs(bytes / positions - 40) < 1, `${bytes / positions} bytes a position`);
  assert.ok(errorOf(fine, scales) < 0.05, `error ${errorOf(fine, scales)}`);
  const coarseScales = keepScales();
  const coarse = await score(12, coarseScales);
  const coarseError = errorOf(coarse, coarseScales);
  assert.ok(coarseError > 2 * errorOf(fine, scales) && coarseError < 0.6, `error ${coarseError} at 12 bytes`);
  // What is fixed stays, whatever is asked for.
  await score(12);
  assert.equal(scales.scale('final'), codebook);
});

/** All numbers of labels, row by row. */
const flatten = (rows: readonly LabelledRow[]) =>
  rows.flatMap(({ topk, hidden }) => [
    ...topk!.logprobs,
    ...topk!.logZ,
    ...[...hidden!.values()].flatMap((states) => Array.from(dequantiseHidden(states))),
  ]);

test('labels do not depend on batches, layout, companions or whether weights stay', async () => {
  const { rows } = await readGoldenRows('qwen2-tiny');
  const [first, second] = rows as [(typeof rows)[0], (typeof rows)[0]];
  const cut = (row: typeof first, length: number, id: string) => ({
    ...row,
    id,
    inputIds: row.inputIds.slice(0, length),
    lossMask: row.lossMask.slice(0, length),
  });
  const mixed = [
    first,
    cut(second, 9, 'c'),
    cut(first, 12, 'd'),
    second,
    cut(second, 1, 'one token'),
    cut(first, 11, 'e'),
  ];
  const labels = labelsOf(16, 'float32');
  const score = (change: Partial<ScoringOptions>, selected = mixed, keepAll = false) =>
    scoreWith(engine, goldenFolder('qwen2-tiny'), selected, {
      labels,
      positions: 'all',
      batchTokens: 64,
      ...change,
      keepAll,
    });
  const packed = flatten(await score({}));
  const compare = (other: readonly number[], where: string) => expectClose(other, packed, { absolute: 1e-5, where });
  compare(flatten(await score({ batchTokens: 1 })), 'one row a batch');
  compare(flatten(await score({ batchTokens: 10_000 })), 'one batch');
  compare(flatten(await score({ layOut: padSequences })), 'padded');
  const inBlocks = (sequences: readonly Int32Array[]) => packSequences(sequences, undefined, 4);
  assert.ok(inBlocks(mixed.map(({ inputIds }) => inputIds)).queryBlocks > 1);
  compare(flatten(await score({ layOut: inBlocks })), 'in blocks of queries');
  const alone = await Promise.all(mixed.map((row) => score({}, [row])));
  compare(flatten(alone.flat()), 'each row alone');
  assert.deepEqual(flatten(await score({}, mixed, true)), packed, 'weights that stay');
  const ids = (scored: readonly LabelledRow[]) => scored.map(({ topk }) => Array.from(topk!.ids));
  assert.deepEqual(ids(await score({ layOut: padSequences })), ids(await score({})));
});

test('rows without label positions have empty labels and fix usable scales', async () => {
  const { config, rows } = await readGoldenRows('llama-tiny');
  const silent = rows.map((row) => ({ ...row, lossMask: new Uint8Array(row.lossMask.length) }));
  const scales = keepScales();
  const options: ScoringOptions = { labels: labelsOf(4, 'int8'), positions: 'response', batchTokens: 64 };
  const folder = goldenFolder('llama-tiny');
  const scored = await scoreWith(engine, folder, silent, { ...options, scales });
  for (const { positions, topk, hidden } of scored) {
    assert.equal(positions.length + topk!.ids.length + topk!.logZ.length + hidden!.get('final')!.values.length, 0);
  }
  assert.deepEqual(scales.scale(1), new Float32Array(config.hiddenSize).fill(1));
});
