import { type FileHandle, open } from 'node:fs/promises';
import { StillhouseError } from '@stillhouse/errors';
import {
  AsyncRecordBatchFileReader,
  type Data,
  Message,
  type RecordBatch,
  RecordBatchReader,
  type Schema,
} from 'apache-arrow';

/** An Arrow IPC file of which single batches are read; never the whole. */
export interface ArrowFile {
  /** Arrow rows before each batch, and at the end all of them: [batches + 1]. */
  readonly batchStarts: readonly number[];
  /** Columns in the order of the schema that was asked for. */
  readBatch(index: number): Promise<ArrowBatch>;
  close(): Promise<void>;
}

export interface ArrowBatch {
  readonly firstRow: number;
  readonly rowCount: number;
  readonly columns: readonly Data[];
  readonly sizeBytes: number;
}

function explainDamage(path: string, cause: unknown): unknown {
  if (cause instanceof StillhouseError) return cause;
  return new StillhouseError({
    code: 'CACHE_FILE_UNREADABLE',
    where: path,
    problem: `this is not an Arrow file that can be read (${cause instanceof Error ? cause.message : String(cause)})`,
    remedy: 'Run `stillhouse cache verify` on the cache, then fetch or build the file again',
    cause,
  });
}

/** Where the wanted columns stand; their names and types must agree, names of list items may differ. */
function locateColumns(path: string, have: Schema, want: Schema): readonly number[] {
  return want.fields.map(({ name, type }) => {
    const index = have.fields.findIndex((field) => field.name === name);
    const got = have.fields[index]?.type;
    if (String(got) === String(type)) return index;
    throw new StillhouseError({
      code: 'CACHE_FILE_UNREADABLE',
      where: path,
      problem: `column ${name} is not as the format has it`,
      expected: String(type),
      got: got === undefined ? 'no such column' : String(got),
      remedy: 'See FORMAT.md for the columns of a teacher cache',
    });
  });
}

function holdsNull(data: Data): boolean {
  return data.nullCount > 0 || data.children.some(holdsNull);
}

/**
 * Opens an Arrow file and indexes its batches by their headers.
 * @param schema the columns that must be there; others are ignored
 * @throws StillhouseError CACHE_FILE_UNREADABLE (from `readBatch` too)
 */
export async function openArrowFile(path: string, schema: Schema): Promise<ArrowFile> {
  const handle = await open(path, 'r');
  try {
    const reader: RecordBatchReader = await RecordBatchReader.from(handle as never);
    if (!(reader instanceof AsyncRecordBatchFileReader)) throw new Error('its magic bytes are missing');
    await reader.open({ autoDestroy: false });
    const columns = locateColumns(path, reader.schema, schema);
    const batchStarts = await indexBatches(handle, reader);
    let last: Promise<unknown> = Promise.resolve();
    return {
      batchStarts,
      // The library's reader seeks, so one batch is read at a time.
      readBatch: (index) => {
        const reading = last.then(() => readBatch(path, reader, index, schema, columns, batchStarts));
        last = reading.catch(() => {});
        return reading;
      },
      close: async () => {
        await last;
        await handle.close();
      },
    };
  } catch (cause) {
    await handle.close();
    throw explainDamage(path, cause);
  }
}

async function indexBatches(handle: FileHandle, reader: AsyncRecordBatchFileReader): Promise<readonly number[]> {
  const { size } = await handle.stat();
  const starts = [0];
  for (let i = 0; i < reader.numRecordBatches; i++) {
    const block = reader.footer?.getRecordBatch(i);
    if (!block || block.metaDataLength < 8 || block.offset + block.metaDataLength + block.bodyLength > size) {
      throw new Error(`batch ${i} leads out of the file`);
    }
    const header = Buffer.alloc(block.metaDataLength);
    await handle.read(header, 0, header.length, block.offset);
    // Four bytes mark a message, four give its length; both are before the message.
    const message = Message.decode(new Uint8Array(header.buffer, header.byteOffset + 8, header.length - 8));
    if (!message.isRecordBatch()) throw new Error(`batch ${i} is something else`);
    const { length, compression } = message.header();
    if (compression !== null) throw new Error('it is compressed, which the format does not allow');
    starts.push(starts[i]! + length);
  }
  return starts;
}

async function readBatch(
  path: string,
  reader: AsyncRecordBatchFileReader,
  index: number,
  schema: Schema,
  columns: readonly number[],
  batchStarts: readonly number[],
): Promise<ArrowBatch> {
  try {
    const batch: RecordBatch | null = await reader.readRecordBatch(index);
    if (batch === null) throw new Error(`batch ${index} is not there`);
    const wanted = columns.map((column) => batch.data.children[column]!);
    for (const [i, data] of wanted.entries()) {
      const { name, nullable } = schema.fields[i]!;
      if (!nullable && holdsNull(data)) throw new Error(`column ${name} has nulls`);
    }
    return {
      firstRow: batchStarts[index]!,
      rowCount: batch.numRows,
      columns: wanted,
      sizeBytes: batch.data.byteLength,
    };
  } catch (cause) {
    throw explainDamage(path, cause);
  }
}
