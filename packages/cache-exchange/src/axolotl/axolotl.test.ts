import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { openCache, openCacheWriter, verifyCache } from '@stillhouse/teacher-cache';
import { asyncBufferFromFile, parquetReadObjects } from 'hyparquet';
import { test } from 'vitest';
import { exportAxolotl, importAxolotl } from '../index.ts';
import { float32, int32, listColumn, nestedColumn, type ParquetColumn } from '../parquet/parquet-columns.ts';
import { writeParquetFile } from '../parquet/parquet-file.ts';
import { inFolder } from '../testing/random-cache.ts';

const TEACHER = {
  kind: 'weights' as const,
  name: 'other',
  architecture: 'qwen2',
  weightsSha256: 'unstated',
  configSha256: 'unstated',
  hiddenSize: 8,
  layerCount: 2,
  vocabSize: 4,
};
const LN2 = Math.log(2);

/** One row: tokens 3, 1, 2, of which the last two are to be predicted; p = (1/2, 1/4, 1/8, 1/8) there and back. */
async function buildCache(folder: string): Promise<void> {
  const z2 = Math.log(Math.SQRT1_2 + 0.5 + 2 * Math.SQRT1_2 * 0.5);
  const description = {
    teacher: TEACHER,
    tokenizer: null,
    data: { sha256: '0'.repeat(64), name: 'hand', rowCount: 1 },
    maxLength: null,
    limit: null,
    labels: { topk: { k: 2, temperatures: [1, 2] }, hidden: null, head: false },
    positions: 'response',
    rowsPerShard: 1,
    generator: { name: 'test', version: '1' },
  } as const;
  const writer = await openCacheWriter(folder, description, { totalRows: 1 });
  await writer.writeShard(0, [
    {
      row: { id: 'a', inputIds: Int32Array.of(3, 1, 2), lossMask: Uint8Array.of(0, 1, 1) },
      positions: Int32Array.of(0, 1),
      topk: {
        counts: Int32Array.of(2, 1),
        ids: Int32Array.of(1, 0, 2),
        logprobs: Float32Array.of(-LN2, -2 * LN2, -LN2),
        logZ: Float32Array.of(0, z2, 0, z2),
      },
    },
  ]);
  await writer.finish();
  await writer.close();
}

const near = (got: readonly (readonly number[])[], want: readonly (readonly number[])[]) => {
  assert.deepEqual(
    got.map((list) => list.length),
    want.map((list) => list.length),
  );
  for (const [i, list] of want.entries())
    for (const [j, value] of list.entries()) assert.ok(Math.abs(got[i]![j]! - value) < 1e-6, `${got[i]![j]} ${value}`);
};

test('a row as axolotl prepares it: labels at their positions, logprobs over the stored ids', () =>
  inFolder(async (folder) => {
    await buildCache(join(folder, 'cache'));
    const cache = await openCache(join(folder, 'cache'));
    const write = async (name: string, options: Parameters<typeof exportAxolotl>[2]) => {
      await exportAxolotl(cache, join(folder, name), options);
      const [row] = await parquetReadObjects({
        file: await asyncBufferFromFile(join(folder, name, '00000.parquet')),
      });
      return row!;
    };
    const plain = await write('plain', {});
    assert.deepEqual(Array.from(plain.input_ids), [3, 1, 2]);
    assert.deepEqual(Array.from(plain.attention_mask), [1, 1, 1]);
    assert.deepEqual(Array.from(plain.labels), [-100, 1, 2]);
    assert.deepEqual(plain.target_token_ids, [[1, 0], [2], []]);
    assert.deepEqual(plain.target_mask, [[1, 1], [1], []]);
    near(plain.target_logprobs, [[Math.log(2 / 3), Math.log(1 / 3)], [0], []]);
    const token = await write('token', { alignment: 'token', normalise: 'none' });
    assert.deepEqual(token.target_token_ids, [[], [1, 0], [2]]);
    near(token.target_logprobs, [[], [-LN2, -2 * LN2], [-LN2]]);
    const warm = await write('warm', { temperature: 2, normalise: 'none' });
    // (1/2, 1/4, 1/8, 1/8) to the power of 1/2, normalised.
    const sum = Math.sqrt(1 / 2) + Math.sqrt(1 / 4) + 2 * Math.sqrt(1 / 8);
    near(warm.target_logprobs, [
      [Math.log(Math.sqrt(1 / 2) / sum), Math.log(Math.sqrt(1 / 4) / sum)],
      [Math.log(Math.sqrt(1 / 2) / sum)],
      [],
    ]);
    await assert.rejects(exportAxolotl(cache, join(folder, 'no'), { temperature: 3, normalise: 'none' }), {
      code: 'EXPORT_TEMPERATURE_UNKNOWN',
      message: /expected one of 1, 2, got 3/,
    });
    const hot = await write('hot', { temperature: 3 });
    const [a, b] = [(1 / 2) ** (1 / 3), (1 / 4) ** (1 / 3)];
    near(hot.target_logprobs, [[Math.log(a / (a + b)), Math.log(b / (a + b))], [0], []]);

    for (const [name, options, want] of [
      ['token', { alignment: 'token' }, [-LN2, -2 * LN2, -LN2]],
      ['plain', {}, [Math.log(2 / 3), Math.log(1 / 3), 0]],
      ['hot', { temperature: 3 }, [Math.log(2 / 3), Math.log(1 / 3), 0]],
    ] as const) {
      const out = join(folder, `again-${name}`);
      const result = await importAxolotl({ from: join(folder, name), out, teacher: TEACHER, ...options });
      assert.deepEqual([result.rowCount, result.positionCount, result.k], [1, 2, 2]);
      assert.deepEqual((await verifyCache(out)).problems, []);
      const again = await openCache(out);
      const { row, positions, topk } = await again.readRow(0);
      assert.deepEqual([row.inputIds, row.lossMask], [Int32Array.of(3, 1, 2), Uint8Array.of(0, 1, 1)]);
      assert.deepEqual(
        [positions, topk!.counts, topk!.ids],
        [Int32Array.of(0, 1), Int32Array.of(2, 1), Int32Array.of(1, 0, 2)],
      );
      near([[...topk!.logprobs]], [want]);
      assert.deepEqual([...topk!.logZ], [0, 0]);
      await again.close();
    }
    await cache.close();
  }));

interface HandRow {
  readonly id: string;
  readonly ids: readonly number[];
  readonly labels: readonly number[];
  readonly attention: readonly number[];
  readonly tokens: readonly (readonly number[])[];
  readonly logprobs: readonly (readonly number[])[];
  readonly mask: readonly (readonly number[])[];
}

const flat = (lists: readonly (readonly number[])[], Kind: typeof Int32Array | typeof Float32Array) => ({
  entries: lists.length,
  positions: Int32Array.from(lists.keys()),
  lengths: lists.map((list) => list.length),
  values: Kind.from(lists.flat()),
});

const COLUMNS: readonly ParquetColumn<HandRow>[] = [
  listColumn('input_ids', '', int32, ({ ids }) => Int32Array.from(ids)),
  listColumn('labels', '', int32, ({ labels }) => Int32Array.from(labels)),
  listColumn('attention_mask', '', int32, ({ attention }) => Int32Array.from(attention)),
  nestedColumn('target_token_ids', '', int32, ({ tokens }) => flat(tokens, Int32Array)),
  nestedColumn('target_logprobs', '', float32, ({ logprobs }) => flat(logprobs, Float32Array)),
  nestedColumn('target_mask', '', int32, ({ mask }) => flat(mask, Int32Array)),
];

async function writeRow(folder: string, row: HandRow, columns = COLUMNS): Promise<void> {
  await mkdir(folder, { recursive: true });
  async function* rows() {
    yield row;
  }
  await writeParquetFile(join(folder, 'a.parquet'), { columns, metadata: {}, pageVersion: 2 }, rows());
}

const good: HandRow = {
  id: 'a',
  ids: [3, 1, 2, 0],
  labels: [-100, 1, 2, -100],
  attention: [1, 1, 1, 0],
  // Padded to two, as collators and preparation pad.
  tokens: [
    [1, 0],
    [2, 0],
    [0, 1],
    [0, 1],
  ],
  logprobs: [
    [-0.5, -1.25],
    [-0.5, -1e9],
    [-Infinity, -Infinity],
    [-1e9, -1e9],
  ],
  mask: [
    [1, 1],
    [1, 0],
    [0, 0],
    [0, 0],
  ],
};

test('padding of rows, entries and positions is left out', () =>
  inFolder(async (folder) => {
    await writeRow(join(folder, 'rows'), good);
    const out = join(folder, 'cache');
    await importAxolotl({ from: join(folder, 'rows'), out, teacher: TEACHER });
    const cache = await openCache(out);
    const { row, topk } = await cache.readRow(0);
    assert.deepEqual([row.id, row.inputIds], ['a.parquet:0', Int32Array.of(3, 1, 2)]);
    assert.deepEqual(topk!.ids, Int32Array.of(1, 0, 2));
    await cache.close();
  }));

test('rows that do not fit together are refused, with their place', () =>
  inFolder(async (folder) => {
    const logprobs = [
      [-3, -4],
      [-1, -2],
      [-1, -2],
      [-1, -2],
    ];
    const improbable = [{ logprobs }, /position 0: the most probable ids are missing.*got at most 0.1047/] as const;
    const cases: readonly (readonly [Partial<HandRow>, RegExp])[] = [
      [{ labels: [-100, 1, 2] }, /row 0: labels has another length than input_ids; expected 4, got 3/],
      [{ labels: [-100, 1, 3, -100] }, /token 2: the label is another id than the token; expected 2, got 3/],
      [{ attention: [1, 1, 2, 2] }, /packed rows hold several sequences/],
      [{ attention: [1, 1] }, /attention_mask has another length/],
      [{ tokens: good.tokens.slice(1) }, /target_token_ids has another length than input_ids; expected 4, got 3/],
      [{ logprobs: [[-1], [-1, -2], [-1, -2], [-1, -2]] }, /entry 0: target_logprobs and target_token_ids differ/],
      [
        {
          logprobs: [
            [-0.5, -1.25],
            [3, -2],
            [-1, -2],
            [-1, -2],
          ],
        },
        /position 1: .*these are no logprobs/,
      ],
      [
        {
          tokens: [
            [1, 9],
            [2, 0],
            [0, 1],
            [0, 1],
          ],
        },
        /position 0: an id is outside of the vocabulary; expected 0 to 3/,
      ],
      [
        {
          mask: [
            [1, 1],
            [0, 0],
            [0, 0],
            [0, 0],
          ],
        },
        /position 1: a token is to be predicted here and the teacher has no/,
      ],
    ];
    for (const [index, [change, message]] of [...cases, improbable].entries()) {
      const from = join(folder, String(index));
      await writeRow(from, { ...good, ...change });
      const out = join(from, 'cache');
      await assert.rejects(importAxolotl({ from, out, teacher: TEACHER }), { code: 'IMPORT_LABELS_INVALID', message });
    }
    const text = join(folder, 'text');
    await writeRow(text, good, COLUMNS.slice(0, 2));
    await assert.rejects(importAxolotl({ from: text, out: join(text, 'cache'), teacher: TEACHER }), {
      code: 'IMPORT_COLUMN_MISSING',
      message: /axolotl preprocess/,
    });
  }));
