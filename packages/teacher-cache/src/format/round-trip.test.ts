import assert from 'node:assert/strict';
import fc from 'fast-check';
import { test } from 'vitest';
import {
  type LabelledRow,
  openCache,
  openCacheWriter,
  type SampledPolicy,
  type TopKPolicy,
  verifyCache,
} from '../index.ts';
import {
  buildRandomCache,
  describeRandomCache,
  fixedChannelRms,
  fixedCodebook,
  prepareRandomCache,
  type RandomCacheShape,
  randomRow,
} from '../testing/random-cache.ts';
import { inFolder } from '../testing/scratch-folder.ts';

function assertSameRow(got: LabelledRow, want: LabelledRow, isLossy = false): void {
  // Views and arrays of their own are alike; what counts is type and content.
  assert.deepEqual(got.row, want.row);
  assert.deepEqual(got.positions, want.positions);
  if (!isLossy) assert.deepEqual(got.topk, want.topk);
  // Rounding what is rounded already may move the last bit of a uint8 logprob.
  const withoutLogprobs = ({ topk }: LabelledRow) => topk && { ...topk, logprobs: topk.logprobs.length };
  assert.deepEqual(withoutLogprobs(got), withoutLogprobs(want));
  got.topk?.logprobs.forEach((logprob, i) => {
    const exact = want.topk!.logprobs[i]!;
    assert.ok(
      Math.abs(logprob - exact) <= 2e-7 * Math.max(1, Math.abs(exact)),
      `logprob ${i}: ${logprob} for ${exact}`,
    );
  });
  assert.deepEqual(got.sampled, want.sampled);
  assert.deepEqual([...(got.hidden ?? [])], [...(want.hidden ?? [])]);
}

const shapes: fc.Arbitrary<RandomCacheShape> = fc
  .record({
    seed: fc.nat(),
    rows: fc.integer({ min: 1, max: 9 }),
    rowsPerShard: fc.integer({ min: 1, max: 5 }),
    maxTokens: fc.constantFrom(1, 2, 12),
    vocabSize: fc.integer({ min: 1, max: 40 }),
    hiddenSize: fc.integer({ min: 1, max: 9 }),
    dtype: fc.constantFrom('int8', 'int8-groups', 'coded', 'float16', 'float32'),
    layers: fc.constantFrom(['final'], [4, 'final', 0], [1], ['attention.4', 2, 'attention.1']),
    positions: fc.constantFrom('response', 'all'),
    temperatures: fc.constantFrom([1], [1, 2, 4], [0.5, 1.5], [0.01, 1, 1000]),
    isWhole: fc.boolean(),
    topk: fc.constantFrom<Partial<TopKPolicy>[]>(
      {},
      { packing: 'zstd' },
      { pinnedIds: [0], keepTarget: true },
      { packing: 'zstd', logprobDtype: 'float16', keepTarget: true },
      { packing: 'zstd', logprobDtype: 'uint16' },
      { tail: 'unknown', temperatures: [] },
      { tail: 'unknown', temperatures: [], packing: 'zstd', logprobDtype: 'uint8', keepTarget: true },
      { packing: 'zstd', logprobDtype: 'uint8', topP: 0.9, minK: 1, pinnedIds: [0], keepTarget: true },
    ),
    sampled: fc.constantFrom<(SampledPolicy | undefined)[]>(
      undefined,
      { draws: 1, temperature: 1 },
      { draws: 50, temperature: 2, seed: 7 },
    ),
  })
  .chain(({ isWhole, ...shape }) =>
    fc
      .integer({ min: 1, max: shape.vocabSize })
      .map((k) => ({
        ...shape,
        k: isWhole ? shape.vocabSize : k,
        hiddenSize: shape.dtype === 'int8-groups' ? 64 * (1 + (shape.hiddenSize % 2)) : shape.hiddenSize,
      }))
      .map((whole) => whole as RandomCacheShape),
  );

test('what is written is read: every dtype, ragged k, k = 1, k = V, rows without a position', async () => {
  await fc.assert(
    fc.asyncProperty(shapes, (shape) =>
      inFolder(async (folder) => {
        const description = await buildRandomCache(folder, shape);
        const cache = await openCache(folder);
        assert.equal(cache.rowCount, shape.rows);
        let index = 0;
        const isLossy = shape.topk?.logprobDtype?.startsWith('uint') === true;
        for await (const got of cache.rows()) assertSameRow(got, randomRow(shape, index++, description), isLossy);
        assert.equal(index, shape.rows);
        for (const id of cache.rowIds) {
          const { row } = await cache.readRow(cache.indexOf(id), {});
          assert.equal(row.id, id);
        }
        const scale = { int8: fixedChannelRms, coded: fixedCodebook }[shape.dtype as 'int8' | 'coded'];
        for (const layer of description.labels.hidden!.layers) {
          assert.deepEqual(await cache.hiddenScale(layer), scale?.(shape.hiddenSize));
        }
        await cache.close();
        const report = await verifyCache(folder);
        assert.deepEqual(report.problems, []);
        assert.equal(report.rowsChecked, shape.rows);
      }),
    ),
    { numRuns: 50 },
  );
});

test('rows come in any order, with the labels asked for; the order of a stream is the one given', () =>
  inFolder(async (folder) => {
    const shape: RandomCacheShape = {
      seed: 1,
      rows: 23,
      rowsPerShard: 4,
      maxTokens: 9,
      vocabSize: 30,
      hiddenSize: 4,
      k: 5,
    };
    const description = await buildRandomCache(folder, shape);
    const cache = await openCache(folder, { batchCacheBytes: 1 });
    const order = Array.from({ length: 100 }, (_, i) => (i * 7) % 23);
    const together = await Promise.all(order.map((index) => cache.readRow(index)));
    for (const [i, index] of order.entries()) assertSameRow(together[i]!, randomRow(shape, index, description));
    const seen: string[] = [];
    for await (const labelled of cache.rows([5, 3, 5], { hidden: [2] })) {
      seen.push(labelled.row.id);
      assert.equal(labelled.topk, undefined);
      assert.deepEqual([...labelled.hidden!.keys()], [2]);
    }
    assert.deepEqual(seen, ['row 5 ä', 'row 3 ä', 'row 5 ä']);
    await cache.close();
  }));

test('the output matrix comes back bit for bit, however its bytes were cut', () =>
  inFolder(async (folder) => {
    const shape: RandomCacheShape = {
      seed: 1,
      rows: 1,
      rowsPerShard: 1,
      maxTokens: 3,
      vocabSize: 70_000,
      hiddenSize: 60,
      k: 1,
    };
    await buildRandomCache(folder, shape);
    const pulled = await openCache(folder, { groups: ['topk', 'hidden-final'] });
    assert.equal(pulled.hasOutputMatrix, false);
    await pulled.close();
    const cache = await openCache(folder);
    const matrix = await cache.readOutputMatrix();
    const bits = new Uint32Array(matrix.buffer);
    assert.equal(bits.length, 70_000 * 60);
    assert.ok(bits.every((word, i) => word === ((i % 0x7f80) << 16) >>> 0));
    let parts = 0;
    for await (const { rowCount } of cache.streamOutputMatrix()) {
      assert.ok(rowCount * 60 * 2 <= 4 << 20);
      parts++;
    }
    assert.ok(parts > 1);
    await cache.close();
  }));

test('labels that cannot be are refused before anything is written', async () => {
  const shape: RandomCacheShape = {
    seed: 3,
    rows: 2,
    rowsPerShard: 2,
    maxTokens: 30,
    vocabSize: 20,
    hiddenSize: 3,
    k: 6,
    dtype: 'float32',
    layers: ['final'],
    positions: 'all',
  };
  const description = describeRandomCache(shape);
  const good = [randomRow(shape, 1, description), randomRow(shape, 2, description)] as const;
  const withTopK = (change: object) => ({ ...good[1], topk: { ...good[1].topk!, ...change } });
  const replaceFirst = <T extends Float32Array | Int32Array>(array: T, value: number): T => {
    const copy = array.slice() as T;
    copy[0] = value;
    return copy;
  };
  const { topk } = good[1];
  const ragged = topk!.counts.findIndex((count) => count > 1);
  const start = topk!.counts.slice(0, ragged).reduce((sum, count) => sum + count, 0);
  const swapped = topk!.logprobs.slice();
  swapped.set([swapped[start + 1]!, swapped[start]!], start);
  const state = good[1].hidden!.get('final')!;
  const withRow = (change: object) => ({ ...good[1], row: { ...good[1].row, ...change } });
  const cases: readonly (readonly [RegExp, LabelledRow])[] = [
    [/another row has the same id/, withRow({ id: good[0].row.id })],
    [/the row id is empty/, withRow({ id: '' })],
    [/topk: .*logprob of id \d+ is -Infinity/, withTopK({ logprobs: replaceFirst(topk!.logprobs, -Infinity) })],
    [/topk: .*id 20 is outside the vocabulary/, withTopK({ ids: replaceFirst(topk!.ids, 20) })],
    [/topk: .*not by descending probability/, withTopK({ logprobs: swapped })],
    [/topk: .*id \d+ occurs twice/, withTopK({ ids: topk!.ids.map(() => 7) })],
    [/topk: .*entries, allowed are 1 to 6/, withTopK({ counts: replaceFirst(topk!.counts, 7) })],
    [/topk: .*log_z at T=1 is 0.5/, withTopK({ logZ: replaceFirst(topk!.logZ, 0.5) })],
    [/topk: .*probabilities add up to/, withTopK({ logprobs: topk!.logprobs.map(() => -0.1), counts: topk!.counts })],
    [/topk: there are no labels/, { row: good[1].row, positions: good[1].positions, hidden: good[1].hidden! }],
    [/hidden-final: there are no hidden states/, { ...good[1], hidden: new Map() }],
    [
      /hidden-final: .*not finite/,
      {
        ...good[1],
        hidden: new Map([['final', { ...state, values: replaceFirst(state.values as Float32Array, NaN) }]]),
      },
    ],
    [/loss mask is 1 at the first token/, withRow({ lossMask: good[1].row.lossMask.map(() => 1) })],
    [/token 0 has id -1/, withRow({ inputIds: replaceFirst(good[1].row.inputIds, -1) })],
    [/the positions are not those of the mask/, { ...good[1], positions: good[1].positions.slice(1) }],
  ];
  await inFolder(async (folder) => {
    const writer = await openCacheWriter(folder, description, { totalRows: 2 });
    await prepareRandomCache(writer);
    for (const [message, bad] of cases) {
      await assert.rejects(writer.writeShard(0, [good[0], bad]), { code: 'CACHE_ROW_INVALID', message });
    }
    assert.equal(writer.completedShards, 0);
    await writer.writeShard(0, good);
    await writer.finish();
    await writer.close();
    assert.deepEqual((await verifyCache(folder)).problems, []);
  });
});
