import assert from 'node:assert/strict';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { test } from 'vitest';
import { withParquetFiles } from '../import/import-cache.ts';
import { inFolder } from '../testing/random-cache.ts';
import { int32, listColumn, nestedColumn, textColumn, uint8, uint64 } from './parquet-columns.ts';
import { writeParquetFile } from './parquet-file.ts';
import { openParquetRows } from './parquet-rows.ts';

interface Row {
  readonly id: string;
  readonly numbers: readonly number[];
  readonly lists: readonly (readonly number[])[];
  readonly text?: string;
}

const columns = [
  textColumn<Row>('id', '', ({ id }) => id),
  textColumn<Row>('text', '', ({ text }) => text, { optional: true }),
  listColumn<Row>('numbers', '', int32, ({ numbers }) => Int32Array.from(numbers)),
  listColumn<Row>('large', '', uint64, ({ numbers }) => BigInt64Array.from(numbers, BigInt)),
  ...([1, 2] as const).map((variant) =>
    nestedColumn<Row>(variant === 1 ? 'lists' : 'bytes', '', variant === 1 ? int32 : uint8, ({ lists }) => ({
      entries: lists.length,
      positions: Int32Array.from(lists.keys()),
      lengths: lists.map((list) => list.length),
      values: variant === 1 ? Int32Array.from(lists.flat()) : Uint8Array.from(lists.flat()),
    })),
  ),
];

const WANTED = { id: 'text', text: 'text', numbers: 1, large: 1, lists: 2, bytes: 2, absent: 1 } as const;

async function write(path: string, rows: readonly Row[], pageVersion: 1 | 2 = 2): Promise<void> {
  async function* iterate() {
    yield* rows;
  }
  await writeParquetFile(path, { columns, metadata: {}, pageVersion }, iterate());
}

test('rows of any lists come back, in both page versions', async () => {
  const row = fc.record({
    id: fc.string(),
    text: fc.option(fc.string({ unit: 'grapheme' }), { nil: undefined }),
    numbers: fc.array(fc.nat()),
    lists: fc.array(fc.array(fc.nat({ max: 255 }), { maxLength: 40 })),
  });
  await inFolder((folder) =>
    fc.assert(
      fc.asyncProperty(
        fc.array(row, { minLength: 1 }),
        fc.constantFrom(1 as const, 2 as const),
        async (rows, version) => {
          const path = join(folder, 'x.parquet');
          await write(path, rows as readonly Row[], version);
          const file = await openParquetRows(path);
          assert.equal(file.rowCount, rows.length);
          let index = 0;
          for await (const got of file.rows(WANTED)) {
            const { id, text, numbers, lists } = rows[index++]!;
            const nested = { lengths: lists.map((list) => list.length), values: lists.flat() };
            assert.deepEqual({ ...got }, { id, text, numbers, large: numbers, lists: nested, bytes: nested });
          }
          assert.equal(index, rows.length);
          await file.close();
        },
      ),
      { numRuns: 60 },
    ),
  );
});

test('a row that is longer than a page, and many pages', () =>
  inFolder(async (folder) => {
    const rows = Array.from({ length: 40 }, (_, i) => ({
      id: String(i),
      numbers: Array.from({ length: 100_000 + i }, (_unused, j) => i + j),
      lists: [[i], [], [1, 2]],
    }));
    const path = join(folder, 'x.parquet');
    await write(path, rows);
    const file = await openParquetRows(path);
    let index = 0;
    for await (const { numbers } of file.rows({ numbers: 1 })) assert.deepEqual(numbers, rows[index++]!.numbers);
    assert.equal(index, 40);
    await file.close();
  }));

test('another type, damage and what is no Parquet are refused', () =>
  inFolder(async (folder) => {
    const path = join(folder, 'x.parquet');
    await write(path, [{ id: 'a', numbers: Array.from({ length: 300 }, (_, i) => i), lists: [[1], [2, 3]] }]);
    const file = await openParquetRows(path);
    await assert.rejects(file.rows({ numbers: 2 }).next(), {
      code: 'IMPORT_COLUMN_TYPE',
      message: /column numbers has another type; expected a list of lists of numbers, got 1 lists around INT32/,
    });
    await assert.rejects(file.rows({ lists: 'text' }).next(), { code: 'IMPORT_COLUMN_TYPE' });
    await file.close();
    await writeFile(join(folder, 'other.parquet'), 'PAR1 and then something else PAR1');
    await assert.rejects(openParquetRows(join(folder, 'other.parquet')), { code: 'IMPORT_FILE_UNREADABLE' });
    await assert.rejects(openParquetRows(join(folder, 'absent.parquet')), { code: 'IMPORT_FILE_UNREADABLE' });
    await mkdir(join(folder, 'empty'));
    await assert.rejects(
      withParquetFiles(join(folder, 'empty'), async () => {}),
      { code: 'IMPORT_FOLDER_EMPTY' },
    );
    await assert.rejects(
      withParquetFiles(join(folder, 'nowhere'), async () => {}),
      { code: 'IMPORT_FOLDER_EMPTY' },
    );
    // Every byte of a page header in turn: an error of ours or the same rows, never another error.
    const whole = await readFile(path);
    for (let at = 4; at < 64; at++) {
      const damaged = Buffer.from(whole);
      damaged[at]! ^= 0x2a;
      await writeFile(path, damaged);
      const opened = await openParquetRows(path);
      try {
        for await (const _ of opened.rows(WANTED));
      } catch (error) {
        assert.match(String((error as { code?: string }).code), /^IMPORT_/, `byte ${at}: ${error}`);
      } finally {
        await opened.close();
      }
    }
  }));
