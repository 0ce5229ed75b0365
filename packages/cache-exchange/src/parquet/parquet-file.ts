import { stageFile } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import type { ColumnChunk, RowGroup, SchemaElement } from 'hyparquet';
import { ByteWriter, type Writer } from 'hyparquet-writer';
// Parts of the library that its index does not name, so package.json has the exact version: what the index has takes
// every number boxed and chooses encodings itself: four times the processor time for one column of ten, and other
// bytes.
import { writePageHeader } from 'hyparquet-writer/src/datapage.js';
import { writeRleBitPackedHybrid } from 'hyparquet-writer/src/encoding.js';
import { writeMetadata } from 'hyparquet-writer/src/metadata.js';
import type { ColumnValues, ParquetColumn } from './parquet-columns.ts';

/** A row group is closed once its columns take so much. */
const ROW_GROUP_BYTES = 64 << 20;
const PAGE_BYTES = 1 << 20;
const MAGIC = Buffer.from('PAR1');
/** The size of a page, which a row cannot leave, is a signed 32-bit number. */
const LARGEST_PAGE_BYTES = 2 ** 31 - 2 ** 24;

export interface ParquetFileOptions<Row> {
  readonly columns: readonly ParquetColumn<Row>[];
  /** Notes for the file's footer. */
  readonly metadata: Readonly<Record<string, string>>;
  /** Data pages of version 1 are what old readers know. */
  readonly pageVersion: 1 | 2;
}

/**
 * Writes rows as one Parquet file: pages of about 1 MiB and whole rows, plain, uncompressed, without statistics; row
 * groups of about 64 MiB, which is what it holds in memory. Of the library come the headers and the encoding of levels.
 * @returns the file's size in bytes
 * @throws StillhouseError EXPORT_ROW_TOO_LARGE, DISK_FULL, NOT_WRITABLE
 */
export async function writeParquetFile<Row extends { readonly id: string }>(
  path: string,
  { columns, metadata, pageVersion }: ParquetFileOptions<Row>,
  rows: AsyncIterable<Row>,
): Promise<number> {
  const staged = await stageFile(path);
  try {
    const bytes = new ByteWriter(1 << 20);
    const flush = async () => {
      await staged.write(bytes.getBytes());
      bytes.index = 0;
    };
    const target: ColumnTarget = { writer: bytes as Writer, flush, pageVersion };
    const root: SchemaElement = { name: 'schema', num_children: columns.length };
    const rowGroups: RowGroup[] = [];
    bytes.appendBytes(MAGIC);
    const pending: ColumnValues[][] = columns.map(() => []);
    let groupBytes = 0;
    const writeGroup = async () => {
      const rowCount = pending[0]!.length;
      if (rowCount === 0) return;
      const start = bytes.offset;
      const chunks: ColumnChunk[] = [];
      for (const [i, column] of columns.entries()) {
        chunks.push(await writeColumnChunk(target, column, pending[i]!));
        pending[i] = [];
      }
      const sizeBytes = BigInt(bytes.offset - start);
      rowGroups.push({
        columns: chunks,
        num_rows: BigInt(rowCount),
        total_byte_size: sizeBytes,
        total_compressed_size: sizeBytes,
      });
      groupBytes = 0;
    };
    for await (const row of rows) {
      const values = columns.map((column) => column.read(row));
      const rowBytes = measureValues(row.id, values);
      if (groupBytes + rowBytes > ROW_GROUP_BYTES) await writeGroup();
      for (const [i, value] of values.entries()) pending[i]!.push(value);
      groupBytes += rowBytes;
    }
    await writeGroup();
    writeMetadata(bytes as Writer, {
      // What old readers insist on.
      version: pageVersion,
      created_by: 'stillhouse',
      schema: [root, ...columns.flatMap(({ schema }) => schema)],
      num_rows: rowGroups.reduce((sum, group) => sum + group.num_rows, 0n),
      row_groups: rowGroups,
      key_value_metadata: Object.entries(metadata).map(([key, value]) => ({ key, value })),
      metadata_length: 0,
    });
    bytes.appendBytes(MAGIC);
    await flush();
    return (await staged.commit()).sizeBytes;
  } finally {
    await staged.abort();
  }
}

/** What a row takes in memory. @throws StillhouseError EXPORT_ROW_TOO_LARGE */
function measureValues(id: string, values: readonly ColumnValues[]): number {
  let sum = 0;
  for (const { values: numbers, repetition, definition } of values) {
    const bytes = numbers.length + repetition.length + definition.length;
    refuseLargeColumn(id, bytes);
    sum += bytes;
  }
  return sum;
}

/** @throws StillhouseError EXPORT_ROW_TOO_LARGE if a column of a row takes more than a page can hold */
export function refuseLargeColumn(id: string, bytes: number): void {
  if (bytes <= LARGEST_PAGE_BYTES) return;
  throw new StillhouseError({
    code: 'EXPORT_ROW_TOO_LARGE',
    where: `row ${id}`,
    problem: 'the labels of one row do not fit into a Parquet page',
    expected: `at most ${LARGEST_PAGE_BYTES} bytes`,
    got: String(bytes),
    remedy: 'Open the cache without its hidden groups and export the rest',
  });
}

interface ColumnTarget {
  readonly writer: Writer;
  /** Brings what the writer holds to the file. */
  flush(): Promise<void>;
  readonly pageVersion: 1 | 2;
}

/** Writes one column of a row group. */
async function writeColumnChunk<Row>(
  { writer, flush, pageVersion }: ColumnTarget,
  column: ParquetColumn<Row>,
  rows: readonly ColumnValues[],
): Promise<ColumnChunk> {
  const start = writer.offset;
  if (column.isBytes) writeByteDictionary(writer);
  const dataStart = writer.offset;
  let levelCount = 0;
  let page: ColumnValues[] = [];
  let pageBytes = 0;
  const writePage = async () => {
    levelCount += writeDataPage(writer, column, page, pageVersion);
    page = [];
    pageBytes = 0;
    await flush();
  };
  for (const row of rows) {
    if (page.length > 0 && pageBytes + row.values.length > PAGE_BYTES) await writePage();
    page.push(row);
    pageBytes += row.values.length;
  }
  await writePage();
  const sizeBytes = BigInt(writer.offset - start);
  return {
    file_offset: BigInt(start),
    meta_data: {
      type: column.schema.at(-1)!.type!,
      encodings: column.isBytes
        ? ['PLAIN', 'RLE', 'RLE_DICTIONARY']
        : column.maxDefinition === 0
          ? ['PLAIN']
          : ['PLAIN', 'RLE'],
      path_in_schema: column.schema.map(({ name }) => name),
      codec: 'UNCOMPRESSED',
      num_values: BigInt(levelCount),
      total_compressed_size: sizeBytes,
      total_uncompressed_size: sizeBytes,
      data_page_offset: BigInt(dataStart),
      ...(column.isBytes ? { dictionary_page_offset: BigInt(start) } : {}),
    },
  };
}

/** The dictionary of a column of bytes: 0 to 255, as the 32-bit numbers that Parquet has for them. */
function writeByteDictionary(writer: Writer): void {
  const entries = Int32Array.from({ length: 256 }, (_, i) => i);
  writePageHeader(writer, {
    type: 'DICTIONARY_PAGE',
    uncompressed_page_size: entries.byteLength,
    compressed_page_size: entries.byteLength,
    dictionary_page_header: { num_values: entries.length, encoding: 'PLAIN', is_sorted: true },
  });
  writer.appendBytes(new Uint8Array(entries.buffer));
}

/** @returns how many values the page has, empty lists and nulls counted */
function writeDataPage<Row>(
  writer: Writer,
  { maxRepetition, maxDefinition, isBytes }: ParquetColumn<Row>,
  page: readonly ColumnValues[],
  pageVersion: 1 | 2,
): number {
  const values = concatenate(page.map((row) => row.values));
  const repetition = concatenate(page.map((row) => row.repetition));
  const definition = concatenate(page.map((row) => row.definition));
  const levelCount = maxDefinition === 0 ? page.length : definition.length;
  const encode = (levels: Uint8Array, max: 0 | 1 | 2): Uint8Array => {
    const bytes = new ByteWriter(1 << 12);
    if (max > 0) writeRleBitPackedHybrid(bytes as Writer, levels as unknown as number[], max);
    return bytes.getBytes();
  };
  const levels = [encode(repetition, maxRepetition), encode(definition, maxDefinition)] as const;
  const body = isBytes ? packByteIndices(values) : values;
  const encoding = isBytes ? 'RLE_DICTIONARY' : 'PLAIN';
  if (pageVersion === 1) {
    const parts = [maxRepetition > 0 ? levels[0] : undefined, maxDefinition > 0 ? levels[1] : undefined];
    const stored = parts.filter((part) => part !== undefined);
    const sizeBytes = stored.reduce((sum, part) => sum + 4 + part.length, body.length);
    writePageHeader(writer, {
      type: 'DATA_PAGE',
      uncompressed_page_size: sizeBytes,
      compressed_page_size: sizeBytes,
      data_page_header: {
        num_values: levelCount,
        encoding,
        definition_level_encoding: 'RLE',
        repetition_level_encoding: 'RLE',
      },
    });
    for (const part of stored) {
      writer.appendUint32(part.length);
      writer.appendBytes(part);
    }
  } else {
    const sizeBytes = levels[0].length + levels[1].length + body.length;
    writePageHeader(writer, {
      type: 'DATA_PAGE_V2',
      uncompressed_page_size: sizeBytes,
      compressed_page_size: sizeBytes,
      data_page_header_v2: {
        num_values: levelCount,
        num_nulls: definition.reduce((empty, level) => empty + (level < maxDefinition ? 1 : 0), 0),
        num_rows: page.length,
        encoding,
        definition_levels_byte_length: levels[1].length,
        repetition_levels_byte_length: levels[0].length,
        is_compressed: false,
      },
    });
    writer.appendBytes(levels[0]);
    writer.appendBytes(levels[1]);
  }
  writer.appendBytes(body);
  return levelCount;
}

/** Bytes as dictionary indices of 8 bits: their width, one run of groups of eight, the bytes themselves. */
function packByteIndices(values: Uint8Array): Uint8Array {
  const groups = Math.ceil(values.length / 8);
  const bytes = new ByteWriter(values.length + 16);
  bytes.appendUint8(8);
  bytes.appendVarInt(groups * 2 + 1);
  bytes.appendBytes(values);
  bytes.appendBytes(new Uint8Array(groups * 8 - values.length));
  return bytes.getBytes();
}

function concatenate(parts: readonly Uint8Array[]): Uint8Array {
  const joined = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let offset = 0;
  for (const part of parts) {
    joined.set(part, offset);
    offset += part.length;
  }
  return joined;
}
