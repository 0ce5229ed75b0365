import { type FileHandle, open } from 'node:fs/promises';
import { StillhouseError } from '@stillhouse/errors';
import type { Data, Schema } from 'apache-arrow';
import { VectorLoader } from 'apache-arrow/visitor/vectorloader';
import { type ArrowFooter, type BatchBlock, decodeBatchHeader, decodeFooter } from './arrow-metadata.ts';

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

/** A file begins with these bytes and ends with the length of its footer, in four bytes, and them. */
const MAGIC = 'ARROW1';
const TAIL_BYTES = 4 + MAGIC.length;

/**
 * Opens an Arrow file and indexes its batches by their headers.
 * @param schema the columns that must be there; others are ignored
 * @throws StillhouseError CACHE_FILE_UNREADABLE (from `readBatch` too)
 */
export async function openArrowFile(path: string, schema: Schema): Promise<ArrowFile> {
  const handle = await open(path, 'r');
  try {
    // The library's own reader would take four reads a batch and clear each buffer first.
    const { schema: found, blocks } = await readFooter(handle);
    const columns = locateColumns(path, found, schema);
    const counts = await Promise.all(blocks.map((block) => readRowCount(handle, block)));
    const batchStarts = [0];
    for (const count of counts) batchStarts.push(batchStarts.at(-1)! + count);
    return {
      batchStarts,
      readBatch: async (index) => {
        try {
          const bytes = await readBlock(handle, blocks[index]!);
          const data = loadColumns(bytes, blocks[index]!, found);
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

async function readFooter(handle: FileHandle): Promise<ArrowFooter> {
  const { size } = await handle.stat();
  if (size < MAGIC.length + TAIL_BYTES) throw new Error('its magic bytes are missing');
  const tail = Buffer.from(await readBytes(handle, size - TAIL_BYTES, TAIL_BYTES));
  const head = Buffer.from(await readBytes(handle, 0, MAGIC.length));
  if (head.toString('latin1') !== MAGIC || tail.toString('latin1', 4) !== MAGIC) {
    throw new Error('its magic bytes are missing');
  }
  const footerBytes = tail.readInt32LE(0);
  const start = size - TAIL_BYTES - footerBytes;
  if (footerBytes < 0 || start < 0) throw new Error('its footer is longer than the file');
  return decodeFooter(await readBytes(handle, start, footerBytes), size);
}

async function readRowCount(handle: FileHandle, block: BatchBlock): Promise<number> {
  const { length, compression } = decodeBatchHeader(await readBlock(handle, { ...block, bodyLength: 0 }), block);
  if (compression !== null) throw new Error('it is compressed, which the format does not allow');
  return length;
}

const readBlock = (handle: FileHandle, { offset, metaDataLength, bodyLength }: BatchBlock) =>
  readBytes(handle, offset, metaDataLength + bodyLength);

async function readBytes(handle: FileHandle, offset: number, sizeBytes: number): Promise<Uint8Array> {
  // Memory of its own, not cleared first: columns are views on it and outlive this call.
  const { buffer } = Buffer.allocUnsafeSlow(sizeBytes);
  const bytes = new Uint8Array(buffer);
  for (let done = 0; done < bytes.length; ) {
    const { bytesRead } = await handle.read(bytes, done, bytes.length - done, offset + done);
    if (bytesRead === 0) throw new Error('it ends too early');
    done += bytesRead;
  }
  return bytes;
}

function loadColumns(bytes: Uint8Array, block: BatchBlock, schema: Schema): readonly Data[] {
  const { nodes, buffers } = decodeBatchHeader(bytes, block);
  const body = bytes.subarray(block.metaDataLength);
  for (const { offset, length } of buffers) {
    if (offset < 0 || length < 0 || offset + length > body.length) throw new Error('a column leads out of its batch');
  }
  return new VectorLoader(body, nodes, buffers, new Map(), schema.metadataVersion).visitMany(schema.fields);
}
