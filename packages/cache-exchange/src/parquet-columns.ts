import type { LabelledRow } from '@stillhouse/teacher-cache';
import type { ColumnChunk, SchemaElement } from 'hyparquet';
import { ByteWriter, type Writer } from 'hyparquet-writer';
import { writePageHeader } from 'hyparquet-writer/src/datapage.js';
import { writeRleBitPackedHybrid } from 'hyparquet-writer/src/encoding.js';

/**
 * What one row contributes to a column: its numbers, and how they nest (Dremel levels, as Parquet has them).
 * `repetition`: 0 begins a row, 1 an entry of the outer list, 2 of the inner. `definition` is the depth that is there:
 * the column's full depth for a number, less for an empty list.
 */
export interface NestedValues {
  readonly values: Uint8Array;
  readonly repetition: Uint8Array;
  readonly definition: Uint8Array;
}

export interface ParquetColumn {
  readonly name: string;
  readonly schema: readonly SchemaElement[];
  /** How many lists surround a value: 0, 1 or 2. */
  readonly depth: 0 | 1 | 2;
  readonly read: (row: LabelledRow) => NestedValues;
}

const PAGE_BYTES = 1 << 20;

/** The three levels that Parquet gives a list: the column, its repeated entry, the element. */
export function listOf(name: string, element: readonly SchemaElement[]): readonly SchemaElement[] {
  return [
    { name, repetition_type: 'REQUIRED', converted_type: 'LIST', num_children: 1 },
    { name: 'list', repetition_type: 'REPEATED', num_children: 1 },
    ...element,
  ];
}

const bytesOf = (values: Int32Array | Float32Array) =>
  new Uint8Array(values.buffer, values.byteOffset, values.byteLength);

/** A string, length first. */
export function textValue(text: string): NestedValues {
  const bytes = Buffer.from(text, 'utf8');
  const values = new Uint8Array(4 + bytes.length);
  new DataView(values.buffer).setInt32(0, bytes.length, true);
  values.set(bytes, 4);
  return { values, repetition: new Uint8Array(0), definition: new Uint8Array(0) };
}

/** A list of numbers. */
export function listValue(values: Int32Array): NestedValues {
  const levels = Math.max(1, values.length);
  const repetition = new Uint8Array(levels).fill(1);
  repetition[0] = 0;
  return { values: bytesOf(values), repetition, definition: new Uint8Array(levels).fill(values.length === 0 ? 0 : 1) };
}

/**
 * `entries` lists of numbers: `lengths(i)` of `values` in turn belong to entry `positions[i]`, the others are empty.
 * @param positions ascending
 */
export function nestedListValue(
  entries: number,
  positions: Int32Array,
  lengths: (place: number) => number,
  values: Int32Array | Float32Array,
): NestedValues {
  const levels = values.length + (entries - positions.length) || 1;
  const repetition = new Uint8Array(levels).fill(2);
  const definition = new Uint8Array(levels).fill(2);
  repetition[0] = 0;
  if (entries === 0) definition[0] = 0;
  let level = 0;
  let place = 0;
  for (let entry = 0; entry < entries; entry++) {
    repetition[level] = entry === 0 ? 0 : 1;
    if (positions[place] === entry) {
      level += lengths(place);
      place++;
    } else {
      definition[level] = 1;
      level++;
    }
  }
  return { values: bytesOf(values), repetition, definition };
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

/**
 * Writes one column of a row group, in pages of about 1 MiB and whole rows, plain and uncompressed. The library
 * would box every number on the way, at a fiftieth of the speed; of it come the headers and the encoding of levels.
 */
export async function writeColumnChunk(
  writer: Writer,
  flush: () => Promise<void>,
  column: ParquetColumn,
  rows: readonly LabelledRow[],
): Promise<ColumnChunk> {
  const start = writer.offset;
  const leaf = column.schema.at(-1)!;
  let levelCount = 0;
  let page: NestedValues[] = [];
  let pageBytes = 0;
  const writePage = async () => {
    levelCount += writePageOf(writer, column.depth, page);
    page = [];
    pageBytes = 0;
    await flush();
  };
  for (const row of rows) {
    const nested = column.read(row);
    if (page.length > 0 && pageBytes + nested.values.length > PAGE_BYTES) await writePage();
    page.push(nested);
    pageBytes += nested.values.length;
  }
  await writePage();
  const sizeBytes = BigInt(writer.offset - start);
  return {
    file_offset: BigInt(start),
    meta_data: {
      type: leaf.type!,
      encodings: column.depth === 0 ? ['PLAIN'] : ['PLAIN', 'RLE'],
      path_in_schema: column.schema.map(({ name }) => name),
      codec: 'UNCOMPRESSED',
      num_values: BigInt(levelCount),
      total_compressed_size: sizeBytes,
      total_uncompressed_size: sizeBytes,
      data_page_offset: BigInt(start),
    },
  };
}

/** @returns how many values the page has, empty lists counted */
function writePageOf(writer: Writer, depth: 0 | 1 | 2, page: readonly NestedValues[]): number {
  const values = concatenate(page.map((row) => row.values));
  const repetition = concatenate(page.map((row) => row.repetition));
  const definition = concatenate(page.map((row) => row.definition));
  const levelCount = depth === 0 ? page.length : definition.length;
  const levels = new ByteWriter(1 << 16);
  const bitWidth = depth === 2 ? 2 : 1;
  const encode = (which: Uint8Array) =>
    depth === 0 ? 0 : writeRleBitPackedHybrid(levels as Writer, which as unknown as number[], bitWidth);
  const repetitionBytes = encode(repetition);
  const definitionBytes = encode(definition);
  const sizeBytes = levels.offset + values.length;
  writePageHeader(writer, {
    type: 'DATA_PAGE_V2',
    uncompressed_page_size: sizeBytes,
    compressed_page_size: sizeBytes,
    data_page_header_v2: {
      num_values: levelCount,
      num_nulls: definition.reduce((empty, level) => empty + (level < depth ? 1 : 0), 0),
      num_rows: page.length,
      encoding: 'PLAIN',
      definition_levels_byte_length: definitionBytes,
      repetition_levels_byte_length: repetitionBytes,
      is_compressed: false,
    },
  });
  writer.appendBytes(levels.getBytes());
  writer.appendBytes(values);
  return levelCount;
}
