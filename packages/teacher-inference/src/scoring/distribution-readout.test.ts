import assert from 'node:assert/strict';
import { openEngine } from '@stillhouse/runtime';
import { type LabelledRow, type TopKPolicy, targetsOf } from '@stillhouse/teacher-cache';
import { expectClose } from '@stillhouse/testing';
import { afterAll, test } from 'vitest';
import { goldenFolder, readGoldenRows, scoreWith } from '../testing/golden-teachers.ts';
import { BLOCK_IDS, blocksGraph, countBlocks, distributionGraph } from './distribution-graph.ts';
import type { ScoringOptions } from './row-scorer.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

const TEACHER = 'qwen2-tiny-untied';
const golden = await readGoldenRows(TEACHER);

const score = (labels: ScoringOptions['labels'], change: Partial<ScoringOptions> = {}, rows = golden.rows) =>
  scoreWith(engine, goldenFolder(TEACHER), rows, {
    labels,
    positions: 'all',
    batchTokens: 64,
    ...change,
  });

/** log p of every id at a position, as transformers has it. */
function logprobsAt(row: number, position: number): Float64Array {
  const { vocabSize } = golden.config;
  const logits = golden.expected[row]!.logits!.subarray(position * vocabSize, (position + 1) * vocabSize);
  const norm = Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit), 0));
  return logits.map((logit) => logit - norm);
}

test('ragged top-k holds the mass that is asked for, pinned ids and the target, with the logprobs of transformers', async () => {
  const topk: TopKPolicy = {
    k: 200,
    temperatures: [1, 2],
    topP: 0.5,
    minK: 3,
    pinnedIds: [0, 511],
    keepTarget: true,
  };
  const scored = await score({ topk, hidden: null, head: false });
  const sizes = new Set<number>();
  for (const [row, { row: cached, positions, topk: labels }] of scored.entries()) {
    const targets = targetsOf(cached, positions);
    let start = 0;
    for (const [i, position] of positions.entries()) {
      const end = start + labels!.counts[i]!;
      const ids = [...labels!.ids.subarray(start, end)];
      const exact = logprobsAt(row, position);
      expectClose(
        labels!.logprobs.subarray(start, end),
        ids.map((id) => exact[id]!),
        { absolute: 5e-5, where: `row ${row} position ${position}` },
      );
      for (const id of [0, 511, targets[i]!]) assert.ok(ids.includes(id), `id ${id} is kept`);
      const ranked = [...exact].sort((a, b) => b - a);
      let mass = 0;
      let enough = 0;
      while (mass < 0.5) mass += Math.exp(ranked[enough++]!);
      const last = ranked[Math.max(3, enough) - 1]!;
      assert.ok(
        exact.every((logprob, id) => logprob < last + 1e-4 || ids.includes(id)),
        'no probable id is missing',
      );
      const others = ids.filter((id) => exact[id]! < last - 1e-4);
      assert.ok(
        others.every((id) => [0, 511, targets[i]].includes(id)),
        'nothing else is there',
      );
      sizes.add(ids.length);
      start = end;
    }
    assert.equal(start, labels!.ids.length);
  }
  assert.ok(sizes.size > 3, `numbers of ids: ${[...sizes]}`);
});

const sampledOf = (rows: readonly LabelledRow[]) =>
  new Map(
    rows.map(({ row, sampled }) => [
      row.id,
      { counts: [...sampled!.counts], ids: [...sampled!.ids], draws: [...sampled!.draws] },
    ]),
  );

test('draws do not depend on batches, companions, order or other labels; on the seed they do', async () => {
  const sampled = { draws: 20, temperature: 2, seed: 9 };
  const labels = { topk: null, sampled, hidden: null, head: false } as const;
  const rows = golden.rows;
  const base = sampledOf(await score(labels));
  assert.deepEqual(sampledOf(await score(labels, { batchTokens: 1 })), base);
  assert.deepEqual(sampledOf(await score(labels, {}, [...rows].reverse())), new Map([...base].reverse()));
  for (const row of rows) assert.deepEqual(sampledOf(await score(labels, {}, [row])).get(row.id), base.get(row.id));
  const beside = await score({ ...labels, topk: { k: 5, temperatures: [1, 4] } });
  assert.deepEqual(sampledOf(beside), base);
  assert.ok(beside.every(({ topk, positions }) => topk!.ids.length === 5 * positions.length));
  assert.notDeepEqual(sampledOf(await score({ ...labels, sampled: { ...sampled, seed: 10 } })), base);
  // A position has its draws whether or not those around it have labels.
  const some = await score(labels, { positions: 'response' });
  for (const { row, positions, sampled: own } of some) {
    const all = base.get(row.id)!;
    let start = 0;
    for (const [i, position] of positions.entries()) {
      const first = all.counts.slice(0, position).reduce((sum, count) => sum + count, 0);
      const count = own!.counts[i]!;
      assert.deepEqual([...own!.ids.subarray(start, start + count)], all.ids.slice(first, first + count));
      start += count;
    }
  }
});

test('draws follow the distribution of transformers at their temperature (chi-square)', async () => {
  const draws = 20_000;
  const { vocabSize } = golden.config;
  for (const temperature of [0.7, 1, 3]) {
    const [first] = await score({ topk: null, sampled: { draws, temperature }, hidden: null, head: false });
    const { counts, ids, draws: drawn } = first!.sampled!;
    let start = 0;
    let chiSquare = 0;
    let degrees = 0;
    for (const [position, count] of counts.entries()) {
      const weights = logprobsAt(0, position).map((logprob) => Math.exp(logprob / temperature));
      const total = weights.reduce((sum, weight) => sum + weight, 0);
      const observed = new Float64Array(vocabSize);
      for (let i = start; i < start + count; i++) observed[ids[i]!]! += drawn[i]!;
      assert.equal(
        observed.reduce((sum, number) => sum + number, 0),
        draws,
      );
      // Ids that are hardly ever drawn count as one.
      let [rareObserved, rareExpected] = [0, 0];
      for (const [id, weight] of weights.entries()) {
        const expected = (draws * weight) / total;
        if (expected < 8) {
          rareObserved += observed[id]!;
          rareExpected += expected;
          continue;
        }
        chiSquare += (observed[id]! - expected) ** 2 / expected;
        degrees++;
      }
      if (rareExpected >= 8) {
        chiSquare += (rareObserved - rareExpected) ** 2 / rareExpected;
        degrees++;
      }
      degrees--;
      start += count;
    }
    const deviations = (chiSquare - degrees) / Math.sqrt(2 * degrees);
    assert.ok(Math.abs(deviations) < 4, `T=${temperature}: chi-square ${chiSquare} at ${degrees} degrees of freedom`);
  }
});

test('a vocabulary that no block divides is sampled to its last id', async () => {
  const config = { hiddenSize: 1, vocabSize: 200 };
  const program = await engine.compile(distributionGraph(config, { topk: null, sampled: { temperature: 2 } }));
  const blocks = await engine.compile(blocksGraph());
  assert.equal(countBlocks(200), 2);
  const x = engine.upload(Float32Array.of(1), 'float32', [1, 1]);
  // Logits 0.01 i: the last id is the most probable one.
  const head = engine.upload(
    Float32Array.from({ length: 200 }, (_, i) => i / 100),
    'float32',
    [200, 1],
  );
  const weights = engine.allocate('float32', [1, 2 * BLOCK_IDS]);
  const blockSums = engine.allocate('float32', [1, 2]);
  await engine.run([{ kind: 'run', program, inputs: { x, head }, outputs: { weights, blockSums } }]);
  const values = (await engine.download(weights)) as Float32Array;
  const wanted = Array.from({ length: 2 * BLOCK_IDS }, (_, i) => (i < 200 ? Math.exp((i - 199) / 200) : 0));
  expectClose(values, wanted, { absolute: 1e-6, where: 'weights' });
  const rows = engine.allocate('float32', [1, BLOCK_IDS]);
  const indices = engine.upload(BigInt64Array.of(1n), 'int64', [1]);
  const inputs = { weights: engine.view(weights, { offset: 0, shape: [2, BLOCK_IDS] }), indices };
  await engine.run([{ kind: 'run', program: blocks, inputs, outputs: { rows } }]);
  assert.deepEqual(await engine.download(rows), values.slice(BLOCK_IDS));
  const sums = (await engine.download(blockSums)) as Float32Array;
  expectClose(
    sums,
    [0, 1].map((b) => wanted.slice(b * 128, b * 128 + 128).reduce((sum, w) => sum + w, 0)),
    {
      absolute: 1e-4,
      where: 'block sums',
    },
  );
});
