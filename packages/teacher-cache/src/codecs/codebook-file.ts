import { StillhouseError } from '@stillhouse/errors';
import { type Data, Field, Float32, List, makeData, type RecordBatch, Schema, Uint8, Uint16 } from 'apache-arrow';
import { assembleBatch } from './arrow-encoding.ts';
import { openArrowFile } from './arrow-file-reader.ts';
import { type HiddenCodebook, openHiddenCoder } from './hidden-codebook.ts';

const listOf = (child: Float32 | Uint8 | Uint16 | List) => new List(new Field('item', child, false));

/** One Arrow row: arrays of different lengths, matrices row by row. */
const codebookSchema = new Schema([
  new Field('mean', listOf(new Float32()), false),
  new Field('encode', listOf(new Float32()), false),
  new Field('decode', listOf(new Float32()), false),
  new Field('table_of', listOf(new Uint8()), false),
  new Field('low_bits', listOf(new Uint8()), false),
  new Field('tables', listOf(listOf(new Uint16())), false),
]);

type Numbers = Float32Array | Uint8Array | Uint16Array;

export function* encodeCodebook({ mean, encode, decode, coder }: HiddenCodebook): Generator<RecordBatch> {
  const type = (column: number) => codebookSchema.fields[column]!.type as List;
  const inner = (list: List) => list.children[0]!.type;
  const wrap = (list: List, child: Data) =>
    makeData({ type: list, length: 1, nullCount: 0, valueOffsets: Int32Array.of(0, child.length), child } as never);
  const flat = (list: List, data: Numbers): Data =>
    wrap(list, makeData({ type: inner(list), length: data.length, nullCount: 0, data } as never) as Data);
  const ends = coder.tables.map((_, t) => coder.tables.slice(0, t + 1).reduce((sum, table) => sum + table.length, 0));
  const joined = Uint16Array.from(coder.tables.flatMap((table) => [...table]));
  const tables = type(5);
  const table = inner(tables) as List;
  const child = makeData({ type: inner(table), length: joined.length, nullCount: 0, data: joined } as never);
  const nested = makeData({
    type: table,
    length: ends.length,
    nullCount: 0,
    valueOffsets: Int32Array.from([0, ...ends]),
    child,
  } as never) as Data;
  yield assembleBatch(codebookSchema, [
    flat(type(0), mean),
    flat(type(1), encode),
    flat(type(2), decode),
    flat(type(3), coder.tableOf),
    flat(type(4), coder.lowBits),
    wrap(tables, nested),
  ]);
}

/**
 * Reads a codebook and checks that it is one.
 * @param width D, the teacher's hidden size
 * @throws StillhouseError CACHE_FILE_UNREADABLE
 */
export async function readCodebook(path: string, width: number): Promise<HiddenCodebook> {
  const file = await openArrowFile(path, codebookSchema);
  try {
    const refuse = (problem: string, cause?: unknown): never => {
      throw new StillhouseError({
        code: 'CACHE_FILE_UNREADABLE',
        where: path,
        problem: `the codebook is not one (${problem})`,
        remedy: 'Run `stillhouse cache verify` on the cache',
        cause,
      });
    };
    if (file.batchStarts.length !== 2 || file.batchStarts[1] !== 1) refuse('it has not one row');
    const { columns } = await file.readBatch(0);
    // Buffers are padded to 8 bytes.
    const valuesOf = <T>({ values, length }: Data) => (values as Float32Array).subarray(0, length) as T;
    const values = <T>(column: number) => valuesOf<T>(columns[column]!.children[0]!);
    const mean = values<Float32Array>(0);
    const [encode, decode] = [values<Float32Array>(1), values<Float32Array>(2)];
    const [tableOf, lowBits] = [values<Uint8Array>(3), values<Uint8Array>(4)];
    const rank = tableOf.length;
    const lengths = [mean.length, encode.length, decode.length, lowBits.length];
    if (lengths.some((length, i) => length !== [width, width * rank, rank * width, rank][i]))
      refuse(`its arrays do not fit a width of ${width} and a rank of ${rank}`);
    for (const array of [mean, encode, decode]) if (!array.every(Number.isFinite)) refuse('a number is not finite');
    const nested = columns[5]!.children[0]!;
    const offsets = nested.valueOffsets as Int32Array;
    const frequencies = valuesOf<Uint16Array>(nested.children[0]!);
    const tables = Array.from({ length: nested.length }, (_, t) => frequencies.slice(offsets[t]!, offsets[t + 1]!));
    if (tables.some((table) => table.length < 4 || table.length > 256 || table.length % 2 === 1))
      refuse('a table has an impossible length');
    if (tableOf.some((table) => table >= tables.length) || lowBits.some((bits) => bits > 8))
      refuse('a coordinate has no table');
    const codebook = { width, rank, mean, encode, decode, coder: { tableOf, lowBits, tables } };
    try {
      openHiddenCoder(codebook.coder);
    } catch (cause) {
      refuse((cause as Error).message, cause);
    }
    return codebook;
  } finally {
    await file.close();
  }
}
