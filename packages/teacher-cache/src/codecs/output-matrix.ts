import { StillhouseError } from '@stillhouse/errors';
import { widenBfloat16, widenFloat16 } from '@stillhouse/float-formats';
import { type Data, type FixedSizeList, makeData, type RecordBatch } from 'apache-arrow';
import { channelRmsSchema, outputMatrixSchema } from '../format/arrow-schemas.ts';
import type { ListedMatrix, MatrixDtype } from '../format/manifest.ts';
import { assembleBatch } from './arrow-encoding.ts';
import { openArrowFile } from './arrow-file-reader.ts';

/** Small enough to stream, large enough to be fast. */
const MATRIX_BATCH_BYTES = 4 << 20;

export const matrixElementBytes = (dtype: MatrixDtype) => (dtype === 'float32' ? 4 : 2);

/** The teacher's output matrix as it comes: row-major, little-endian, in chunks of any length. */
export interface OutputMatrixSource {
  readonly dtype: MatrixDtype;
  readonly rows: number;
  readonly columns: number;
  readonly chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>;
}

/**
 * Batches of whole matrix rows; their bounds do not depend on how the chunks were cut.
 * @throws StillhouseError CACHE_MATRIX_INVALID
 */
export async function* encodeOutputMatrix(source: OutputMatrixSource): AsyncGenerator<RecordBatch> {
  const { dtype, rows, columns } = source;
  const schema = outputMatrixSchema(dtype, columns);
  const rowBytes = columns * matrixElementBytes(dtype);
  const batchRows = Math.max(1, Math.floor(MATRIX_BATCH_BYTES / rowBytes));
  let doneRows = 0;
  let buffer = new Uint8Array(Math.min(batchRows, rows) * rowBytes);
  let filled = 0;
  const refuse = (got: string): never => {
    throw new StillhouseError({
      code: 'CACHE_MATRIX_INVALID',
      where: 'output matrix',
      problem: 'its length does not fit its shape',
      expected: `${rows} x ${columns} x ${matrixElementBytes(dtype)} bytes`,
      got,
    });
  };
  for await (const chunk of source.chunks) {
    let taken = 0;
    while (taken < chunk.length) {
      if (doneRows === rows) refuse('more');
      const piece = chunk.subarray(taken, taken + buffer.length - filled);
      buffer.set(piece, filled);
      filled += piece.length;
      taken += piece.length;
      if (filled < buffer.length) continue;
      const length = buffer.length / rowBytes;
      const type = schema.fields[0]!.type as FixedSizeList;
      const Numbers = dtype === 'float32' ? Float32Array : Uint16Array;
      const data = new Numbers(buffer.buffer);
      const child = makeData({ type: type.children[0]!.type, length: data.length, nullCount: 0, data } as never);
      yield assembleBatch(schema, [makeData({ type, length, nullCount: 0, child } as never)]);
      doneRows += length;
      buffer = new Uint8Array(Math.min(batchRows, rows - doneRows) * rowBytes);
      filled = 0;
    }
  }
  if (doneRows < rows) refuse(`${doneRows * rowBytes + filled} bytes`);
}

export interface MatrixRows {
  readonly firstRow: number;
  readonly rowCount: number;
  /** [rowCount, columns] as stored; of bfloat16 and float16 the bits. */
  readonly values: Uint16Array | Float32Array;
}

/** The stored output matrix, some rows at a time. */
export async function* streamOutputMatrix(path: string, matrix: ListedMatrix): AsyncGenerator<MatrixRows> {
  const file = await openArrowFile(path, outputMatrixSchema(matrix.dtype, matrix.columns));
  try {
    if (file.batchStarts.at(-1) !== matrix.rows) {
      throw new StillhouseError({
        code: 'CACHE_FILE_UNREADABLE',
        where: path,
        problem: 'the output matrix has another number of rows than the manifest says',
        expected: String(matrix.rows),
        got: String(file.batchStarts.at(-1)),
      });
    }
    for (let i = 0; i + 1 < file.batchStarts.length; i++) {
      const { columns, firstRow, rowCount } = await file.readBatch(i);
      const values = columns[0]!.children[0]!.values as Uint16Array | Float32Array;
      yield { firstRow, rowCount, values: values.subarray(0, rowCount * matrix.columns) as Uint16Array | Float32Array };
    }
  } finally {
    await file.close();
  }
}

/** Widens stored numbers to float32 into `out`. */
export function widenMatrixRows(dtype: MatrixDtype, { values }: MatrixRows, out: Float32Array<ArrayBuffer>): void {
  if (values instanceof Float32Array) out.set(values);
  else if (dtype === 'bfloat16') widenBfloat16(values, out);
  else widenFloat16(values, out);
}

export function* encodeChannelRms(rms: Float32Array): Generator<RecordBatch> {
  const { type } = channelRmsSchema.fields[0]!;
  yield assembleBatch(channelRmsSchema, [
    makeData({ type, length: rms.length, nullCount: 0, data: rms } as never) as Data,
  ]);
}

/** @returns [width] */
export async function readChannelRms(path: string, width: number): Promise<Float32Array> {
  const file = await openArrowFile(path, channelRmsSchema);
  try {
    const rms = new Float32Array(width);
    const rows = file.batchStarts.at(-1)!;
    const refuse = (problem: string): never => {
      throw new StillhouseError({ code: 'CACHE_FILE_UNREADABLE', where: path, problem });
    };
    if (rows !== width) refuse(`there are ${rows} channels, the teacher has ${width}`);
    for (let i = 0; i + 1 < file.batchStarts.length; i++) {
      const batch = await file.readBatch(i);
      rms.set((batch.columns[0]!.values as Float32Array).subarray(0, batch.rowCount), batch.firstRow);
    }
    const bad = rms.findIndex((value) => !(value > 0 && value < Infinity));
    if (bad >= 0) refuse(`the RMS of channel ${bad} is ${rms[bad]}`);
    return rms;
  } finally {
    await file.close();
  }
}
