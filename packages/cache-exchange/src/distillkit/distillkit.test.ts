import assert from 'node:assert/strict';
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { openCache, verifyCache } from '@stillhouse/teacher-cache';
import { test } from 'vitest';
import { DISTILLKIT_PRESETS, exportDistillKit, importDistillKit } from '../index.ts';
import { listColumn, nestedColumn, type ParquetColumn, textColumn, uint8, uint64 } from '../parquet/parquet-columns.ts';
import { writeParquetFile } from '../parquet/parquet-file.ts';
import { buildRandomCache, inFolder, SHAPE } from '../testing/random-cache.ts';
import { printDistillKitConfig } from './distillkit-config.ts';
import { createDistillKitPacking } from './distillkit-packing.ts';

const TEACHER = {
  kind: 'weights' as const,
  name: 'other',
  architecture: 'qwen2',
  weightsSha256: 'unstated',
  configSha256: 'unstated',
  hiddenSize: 8,
  layerCount: 2,
  vocabSize: SHAPE.vocabSize,
};

/** Rows by hand, packed with `exact` and k = 2 over 8 ids. */
interface HandRow {
  readonly id: string;
  readonly inputIds: readonly number[];
  readonly entries: readonly (readonly (readonly [id: number, logprob: number])[])[];
  readonly labels?: readonly number[];
  readonly attention?: readonly number[];
}

const CONFIG = DISTILLKIT_PRESETS.exact(8, 2);

async function writeCapture(folder: string, rows: readonly HandRow[], columns: readonly string[]): Promise<void> {
  const packing = createDistillKitPacking(CONFIG);
  const pack = ({ entries }: HandRow, which: 0 | 1) => {
    const parts = entries.map((entry) => {
      const out = [new Uint8Array(packing.logprobBytes), new Uint8Array(packing.indexBytes)] as const;
      const [ids, values] = [entry.map(([id]) => id), entry.map(([, logprob]) => logprob)];
      packing.pack(ids, values, ...out);
      return out[which];
    });
    return {
      entries: entries.length,
      positions: Int32Array.from(entries.keys()),
      lengths: parts.map(({ length }) => length),
      values: Uint8Array.from(parts.flatMap((part) => [...part])),
    };
  };
  const big = (values: readonly number[]) => BigInt64Array.from(values, BigInt);
  const all: readonly ParquetColumn<HandRow>[] = [
    listColumn('input_ids', '', uint64, ({ inputIds }) => big(inputIds)),
    nestedColumn('compressed_logprobs', '', uint8, (row) => pack(row, 0)),
    nestedColumn('bytepacked_indices', '', uint8, (row) => pack(row, 1)),
    listColumn('labels', '', uint64, ({ labels }) => big(labels ?? [])),
    listColumn('attention_mask', '', uint64, ({ attention }) => big(attention ?? [])),
    textColumn('row_id', '', ({ id }) => id),
  ];
  const kept = all.filter(({ name }) => columns.includes(name));
  async function* iterate() {
    yield* rows;
  }
  await writeParquetFile(join(folder, 'data_0.parquet'), { columns: kept, metadata: {}, pageVersion: 2 }, iterate());
  await writeFile(join(folder, 'compression_config.yaml'), printDistillKitConfig(CONFIG));
}

const PACKED = ['input_ids', 'compressed_logprobs', 'bytepacked_indices'];
const label = (id: number) =>
  [
    [id, -0.125],
    [(id + 1) % 8, -2.5],
  ] as const;
const teacher = { ...TEACHER, vocabSize: 8 };

test('an exact export comes back as it was', () =>
  inFolder(async (folder) => {
    await buildRandomCache(join(folder, 'cache'), SHAPE);
    const cache = await openCache(join(folder, 'cache'));
    await exportDistillKit(cache, join(folder, 'out'), DISTILLKIT_PRESETS.exact(SHAPE.vocabSize, SHAPE.k));
    assert.deepEqual((await readdir(join(folder, 'out'))).sort(), [
      'compression_config.yaml',
      'data_0.parquet',
      'data_1.parquet',
      'data_2.parquet',
    ]);
    assert.match(await readFile(join(folder, 'out', 'compression_config.yaml'), 'utf8'), /^exact_k: 4$/m);
    const options = { from: join(folder, 'out'), out: join(folder, 'again'), teacher: TEACHER, rowsPerShard: 2 };
    const result = await importDistillKit(options);
    assert.equal(result.rowCount, 7);
    assert.equal(result.rescaled, 0);
    assert.deepEqual((await verifyCache(join(folder, 'again'))).problems, []);
    const again = await openCache(join(folder, 'again'));
    assert.deepEqual(again.description.labels.topk, { k: 4, temperatures: [1] });
    assert.equal(again.description.teacher?.name, 'other');
    let compared = 0;
    for (let index = 0; index < 7; index++) {
      const [want, got] = [await cache.readRow(index), await again.readRow(index)];
      assert.deepEqual(got.row.inputIds, want.row.inputIds);
      const places = new Map([...want.positions].map((position, place) => [position, place]));
      for (const [place, position] of got.positions.entries()) {
        const cut = ({ topk }: typeof got, at: number) => {
          const start = topk!.counts.subarray(0, at).reduce((sum, count) => sum + count, 0);
          const end = start + topk!.counts[at]!;
          return [topk!.ids.slice(start, end), topk!.logprobs.slice(start, end)];
        };
        assert.deepEqual(cut(got, place), cut(want, places.get(position)!));
        compared++;
      }
    }
    assert.ok(compared > 5);
    const { cacheDigest } = await importDistillKit(options);
    assert.equal(cacheDigest, result.cacheDigest);
    await Promise.all([cache.close(), again.close()]);
  }));

test('a capture without labels: every token but the first is to be predicted, entry p by position p', () =>
  inFolder(async (folder) => {
    const rows = [{ id: 'a', inputIds: [5, 6, 7], entries: [label(6), label(7)] }];
    await writeCapture(folder, rows, [...PACKED, 'row_id']);
    const out = join(folder, 'cache');
    await importDistillKit({ from: folder, out, teacher });
    const cache = await openCache(out);
    const { row, positions, topk } = await cache.readRow(0);
    assert.deepEqual([row.id, row.lossMask, positions], ['a', Uint8Array.of(0, 1, 1), Int32Array.of(0, 1)]);
    assert.deepEqual(topk!.ids, Int32Array.of(6, 7, 7, 0));
    assert.deepEqual(topk!.logprobs, Float32Array.of(-0.125, -2.5, -0.125, -2.5));
    await cache.close();
  }));

test('rows that were packed together are taken apart, without the label of the token that was cut off', () =>
  inFolder(async (folder) => {
    const rows = [
      {
        id: '',
        inputIds: [1, 2, 3, 4, 5, 0],
        attention: [1, 1, 1, 2, 2, 0],
        entries: [label(2), label(3), label(4), label(5), label(6), label(0)],
      },
    ];
    await writeCapture(folder, rows, [...PACKED, 'attention_mask']);
    const out = join(folder, 'cache');
    assert.equal((await importDistillKit({ from: folder, out, teacher })).rowCount, 2);
    const cache = await openCache(out);
    assert.deepEqual(cache.rowIds, ['data_0.parquet:0#0', 'data_0.parquet:0#1']);
    const [first, second] = [await cache.readRow(0), await cache.readRow(1)];
    assert.deepEqual([first.row.inputIds, first.topk!.ids], [Int32Array.of(1, 2, 3), Int32Array.of(2, 3, 3, 4)]);
    assert.deepEqual([second.row.inputIds, second.topk!.ids], [Int32Array.of(4, 5), Int32Array.of(5, 6)]);
    await cache.close();
  }));

test('quantised mass above 1 is brought down and reported; padding goes', () =>
  inFolder(async (folder) => {
    const entries = [
      [
        [1, -0.1],
        [2, -2],
      ],
      [
        [3, -0.5],
        [4, -60],
      ],
    ] as const;
    await writeCapture(folder, [{ id: 'a', inputIds: [0, 1, 2], entries }], PACKED);
    const out = join(folder, 'cache');
    const result = await importDistillKit({ from: folder, out, teacher });
    const mass = Math.exp(-0.1) + Math.exp(-2);
    assert.deepEqual([result.rescaled, result.dropped, result.k], [1, 1, 2]);
    assert.ok(Math.abs(result.largestShiftNats - Math.log(mass)) < 1e-6);
    const cache = await openCache(out);
    const { topk } = await cache.readRow(0);
    assert.deepEqual(topk!.counts, Int32Array.of(2, 1));
    assert.ok(Math.abs(topk!.logprobs[0]! - (-0.1 - Math.log(mass))) < 1e-6);
    await cache.close();
  }));

test('what is no label is refused, with its place', () =>
  inFolder(async (folder) => {
    const good: HandRow = { id: 'a', inputIds: [5, 6, 7], entries: [label(6), label(7)] };
    const cases: readonly (readonly [HandRow, readonly string[], string, RegExp])[] = [
      [
        { ...good, entries: [label(6)] },
        PACKED,
        'IMPORT_LABELS_INVALID',
        /a label for each token but the last.*2, got 1/,
      ],
      [
        {
          ...good,
          entries: [
            label(6),
            [
              [3, 0],
              [4, 0],
            ],
          ],
        },
        PACKED,
        'IMPORT_LABELS_INVALID',
        /position 1: .*no logprobs/,
      ],
      [
        {
          ...good,
          entries: [
            label(6),
            [
              [3, -1],
              [3, -2],
            ],
          ],
        },
        PACKED,
        'IMPORT_LABELS_INVALID',
        /id 3 is there twice/,
      ],
      [
        {
          ...good,
          entries: [
            label(6),
            [
              [3, -80],
              [4, -90],
            ],
          ],
        },
        PACKED,
        'IMPORT_LABELS_INVALID',
        /no entry has any/,
      ],
      [
        {
          ...good,
          entries: [
            label(6),
            [
              [3, Number.NaN],
              [4, -1],
            ],
          ],
        },
        PACKED,
        'IMPORT_LABELS_INVALID',
        /the logprob of id 3 is no number/,
      ],
      [{ ...good, labels: [5] }, [...PACKED, 'labels'], 'IMPORT_LABELS_INVALID', /labels has another length/],
      [good, PACKED.slice(1), 'IMPORT_COLUMN_MISSING', /column input_ids is missing/],
    ];
    for (const [index, [row, columns, code, message]] of cases.entries()) {
      const from = join(folder, String(index));
      await mkdir(from);
      await writeCapture(from, [row], columns);
      await assert.rejects(importDistillKit({ from, out: join(from, 'cache'), teacher }), { code, message });
    }
    await mkdir(join(folder, 'small'));
    await writeCapture(join(folder, 'small'), [good], PACKED);
    const small = { from: join(folder, 'small'), out: join(folder, 'x'), teacher: { ...teacher, vocabSize: 6 } };
    await assert.rejects(importDistillKit(small), { code: 'IMPORT_LABELS_INVALID', message: /0 to 5, got 6/ });
  }));

test('a curve needs k entries, and ids must fit', () =>
  inFolder(async (folder) => {
    await buildRandomCache(join(folder, 'cache'), { ...SHAPE, vocabSize: 60 });
    const cache = await openCache(join(folder, 'cache'));
    await assert.rejects(exportDistillKit(cache, join(folder, 'a'), DISTILLKIT_PRESETS.budget(60)), {
      code: 'EXPORT_TOO_FEW_ENTRIES',
      message: /expected 50 entries, got \d/,
    });
    await assert.rejects(exportDistillKit(cache, join(folder, 'b'), DISTILLKIT_PRESETS.exact(8, 4)), {
      code: 'EXPORT_ID_TOO_LARGE',
      message: /ids below 8/,
    });
    await assert.rejects(exportDistillKit(cache, join(folder, 'c'), DISTILLKIT_PRESETS.exact(60, 61)), {
      code: 'DISTILLKIT_CONFIG_INVALID',
    });
    await cache.close();
    const rows = await openCache(join(folder, 'cache'), { groups: ['rows'] });
    await assert.rejects(exportDistillKit(rows, join(folder, 'd'), DISTILLKIT_PRESETS.exact(60, 4)), {
      code: 'EXPORT_LABELS_MISSING',
    });
    await rows.close();
    assert.deepEqual(await readdir(folder), ['cache']);
  }));
