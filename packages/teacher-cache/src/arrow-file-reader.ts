import { type FileHandle, open } from 'node:fs/promises';
import { StillhouseError } from '@stillhouse/errors';
import { AsyncRecordBatchFileReader, type Data, Message, RecordBatchReader, type Schema } from 'apache-arrow';
import { VectorLoader } from 'apache-arrow/visitor/vectorloader';

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
 * Refuses a column that claims more entries than its buffers hold: a batch of a few bytes that says it has a thousand
 * million rows would otherwise be read row by row.
 */
function requireWhole(name: string, data: Data): void {
  const { length, children, valueOffsets, values, stride } = data;
  const short = () => {
    throw new Error(`column ${name} says it has ${length} entries and holds fewer`);
  };
  if (!(length >= 0)) short();
  if (valueOffsets !== undefined && length > 0 && valueOffsets.length < length + 1) short();
  if (children.length === 0 && valueOffsets === undefined && values.length < length * stride) short();
  const fixedSize = (data.type as { readonly listSize?: number }).listSize;
  for (const child of children) {
    if (fixedSize !== undefined && child.length < length * fixedSize) short();
    requireWhole(name, child);
  }
}

/** Where a record batch stands in the file: its header, which the body follows. */
interface BatchBlock {
  readonly offset: number;
  readonly metaDataLength: number;
  readonly bodyLength: number;
}

/**
 * Opens an Arrow file and indexes its batches by their headers.
 * @param schema the columns that must be there; others are ignored
 * @throws StillhouseError CACHE_FILE_UNREADABLE (from `readBatch` too)
 */
export async function openArrowFile(path: string, schema: Schema): Promise<ArrowFile> {
  const handle = await open(path, 'r');
  try {
    // The library's own reader would take four reads a batch and clear each buffer first, so it reads the footer only.
    const reader: RecordBatchReader = await RecordBatchReader.from(handle as never);
    if (!(reader instanceof AsyncRecordBatchFileReader)) throw new Error('its magic bytes are missing');
    await reader.open({ autoDestroy: false });
    const columns = locateColumns(path, reader.schema, schema);
    const blocks = await listBlocks(handle, reader);
    const counts = await Promise.all(blocks.map((block, i) => readRowCount(handle, block, i)));
    const batchStarts = [0];
    for (const count of counts) batchStarts.push(batchStarts.at(-1)! + count);
    return {
      batchStarts,
      readBatch: async (index) => {
        try {
          const bytes = await readBytes(handle, blocks[index]!);
          const data = loadColumns(bytes, blocks[index]!, reader.schema);
          const wanted = columns.map((column) => data[column]!);
          for (const [i, column] of wanted.entries()) {
            const { name, nullable } = schema.fields[i]!;
            if (column.length !== counts[index]) throw new Error(`column ${name} has not as many rows as its batch`);
            requireWhole(name, column);
            if (!nullable && holdsNull(column)) throw new Error(`column ${name} has nulls`);
          }
          const rowCount = counts[index]!;
          return { firstRow: batchStarts[index]!, rowCount, columns: wanted, sizeBytes: bytes.length };
        } catch (cause) {
          throw explainDamage(path, cause);
        }
      },
      close: () => handle.close(),
    };
  } catch (cause) {
    await handle.close();
    throw explainDamage(path, cause);
  }
}

async function listBlocks(handle: FileHandle, reader: AsyncRecordBatchFileReader): Promise<readonly BatchBlock[]> {
  const { size } = await handle.stat();
  return Array.from({ length: reader.numRecordBatches }, (_, i) => {
    const block = reader.footer?.getRecordBatch(i);
    if (!block || block.metaDataLength < 8 || block.offset + block.metaDataLength + block.bodyLength > size) {
      throw new Error(`batch ${i} leads out of the file`);
    }
    return block;
  });
}

/** Four bytes mark a message, four give its length; both stand before it. */
const decodeHeader = (bytes: Uint8Array, { metaDataLength }: BatchBlock) =>
  Message.decode(bytes.subarray(8, metaDataLength));

async function readRowCount(handle: FileHandle, block: BatchBlock, index: number): Promise<number> {
  const message = decodeHeader(await readBytes(handle, { ...block, bodyLength: 0 }), block);
  if (!message.isRecordBatch()) throw new Error(`batch ${index} is something else`);
  const { length, compression } = message.header();
  if (compression !== null) throw new Error('it is compressed, which the format does not allow');
  return length;
}

async function readBytes(handle: FileHandle, { offset, metaDataLength, bodyLength }: BatchBlock): Promise<Uint8Array> {
  // Memory of its own, not cleared first: columns are views on it and outlive this call.
  const { buffer } = Buffer.allocUnsafeSlow(metaDataLength + bodyLength);
  const bytes = new Uint8Array(buffer);
  for (let done = 0; done < bytes.length; ) {
    const { bytesRead } = await handle.read(bytes, done, bytes.length - done, offset + done);
    if (bytesRead === 0) throw new Error('it ends too early');
    done += bytesRead;
  }
  return bytes;
}

function loadColumns(bytes: Uint8Array, block: BatchBlock, schema: Schema): readonly Data[] {
  const message = decodeHeader(bytes, block);
  if (!message.isRecordBatch()) throw new Error('a batch is something else');
  const { nodes, buffers } = message.header();
  const body = bytes.subarray(block.metaDataLength);
  for (const { offset, length } of buffers) {
    if (offset < 0 || length < 0 || offset + length > body.length) throw new Error('a column leads out of its batch');
  }
  return new VectorLoader(body, nodes, buffers, new Map(), schema.metadataVersion).visitMany(schema.fields);
}
