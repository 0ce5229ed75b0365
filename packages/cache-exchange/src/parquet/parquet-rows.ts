import { type FileHandle, open } from 'node:fs/promises';
import { StillhouseError } from '@stillhouse/errors';
import { type FileMetaData, parquetMetadataAsync, parquetSchema, type RowGroup, type SchemaTree } from 'hyparquet';
// Parts of the library that its index does not name, so package.json has the exact version: what the index has
// assembles whole row groups, and in files of other tools a row group is often the file.
import { parquetHeader } from 'hyparquet/src/column.js';
import { DEFAULT_PARSERS } from 'hyparquet/src/convert.js';
import { decompressPage, readDataPage, readDataPageV2 } from 'hyparquet/src/datapage.js';
import { readPlain } from 'hyparquet/src/plain.js';
import { getTreePath } from 'hyparquet/src/schema.js';

/** One row of a column of lists of lists: `lengths[i]` of `values` in turn belong to entry i. */
export interface NestedCell {
  readonly lengths: readonly number[];
  readonly values: readonly number[];
}

/** Lists around a number, or `text`; the depth tells what a cell of the column is. */
export type ColumnKind = 1 | 2 | 'text';
export type CellOf<Kind extends ColumnKind> = Kind extends 1 ? readonly number[] : Kind extends 2 ? NestedCell : string;
export type RowOf<Columns extends Readonly<Record<string, ColumnKind>>> = {
  readonly [Name in keyof Columns]: CellOf<Columns[Name]> | undefined;
};

export interface ParquetRows {
  readonly path: string;
  readonly rowCount: number;
  readonly columnNames: readonly string[];
  /**
   * The rows of the columns asked for, a page of each in memory; undefined where a column is not there or null.
   * @throws StillhouseError IMPORT_COLUMN_TYPE, IMPORT_FILE_UNREADABLE
   */
  rows<Columns extends Readonly<Record<string, ColumnKind>>>(columns: Columns): AsyncGenerator<RowOf<Columns>>;
  close(): Promise<void>;
}

/** Pages beyond it are no pages; pyarrow's are 1 MiB before compression. */
const LARGEST_PAGE_BYTES = 1 << 28;
const MOST_PAGE_VALUES = 1 << 26;
const HEADER_WINDOW_BYTES = 64 << 10;
const NUMBER_TYPES: readonly unknown[] = ['INT32', 'INT64', 'FLOAT', 'DOUBLE'];

/**
 * Opens a Parquet file for a pass over some columns, page by page: the library assembles whole row groups of boxed
 * numbers, which captured labels are too large for.
 * @throws StillhouseError IMPORT_FILE_UNREADABLE
 */
export async function openParquetRows(path: string): Promise<ParquetRows> {
  const file = await open(path).catch((cause: unknown) => {
    throw unreadable(path, 'it cannot be opened', cause);
  });
  try {
    const { size } = await file.stat();
    const metadata = await parquetMetadataAsync({
      byteLength: size,
      slice: async (start, end) => {
        const bytes = await readBytes(file, start, (end ?? size) - start);
        return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength) as ArrayBuffer;
      },
    });
    const tree = parquetSchema(metadata);
    return {
      path,
      rowCount: Number(metadata.num_rows),
      columnNames: tree.children.map(({ element }) => element.name),
      rows: (columns) => readRows({ path, file, size, metadata, tree }, columns),
      close: () => file.close(),
    };
  } catch (cause) {
    await file.close();
    throw unreadable(path, 'it is no Parquet file', cause);
  }
}

interface OpenFile {
  readonly path: string;
  readonly file: FileHandle;
  readonly size: number;
  readonly metadata: FileMetaData;
  readonly tree: SchemaTree;
}

async function* readRows<Columns extends Readonly<Record<string, ColumnKind>>>(
  source: OpenFile,
  columns: Columns,
): AsyncGenerator<RowOf<Columns>> {
  const present = Object.entries(columns).filter(([name]) =>
    source.tree.children.some(({ element }) => element.name === name),
  );
  const leaves = present.map(([name, kind]) => [name, findLeaf(source, name, kind)] as const);
  for (const group of source.metadata.row_groups) {
    const cursors = leaves.map(([name, leaf]) => [name, readCells(source, group, leaf)] as const);
    try {
      for (let row = 0; row < Number(group.num_rows); row++) {
        const cells: Record<string, unknown> = {};
        for (const [name, cursor] of cursors) {
          const next = await cursor.next();
          if (next.done === true) throw unreadable(source.path, `column ${name} has fewer rows than the file`);
          cells[name] = next.value;
        }
        yield cells as RowOf<Columns>;
      }
    } finally {
      for (const [, cursor] of cursors) await cursor.return(undefined);
    }
  }
}

/** A column's only leaf and the definition levels at which its lists and its value begin to be there. */
interface Leaf {
  readonly name: string;
  readonly kind: ColumnKind;
  readonly path: readonly SchemaTree[];
  /** Of the outer list (the value itself without lists), of the inner list, of the value. */
  readonly levels: readonly [outer: number, inner: number, value: number];
}

function findLeaf({ path: where, tree }: OpenFile, name: string, kind: ColumnKind): Leaf {
  const path = [tree];
  for (let node = tree.children.find(({ element }) => element.name === name); node !== undefined; ) {
    path.push(node);
    if (node.children.length > 1) throw wrongType(where, name, kind, 'a group of several');
    node = node.children[0];
  }
  const repeated: number[] = [];
  let definition = 0;
  for (const { element } of path.slice(1)) {
    if (element.repetition_type !== 'REQUIRED') definition++;
    if (element.repetition_type === 'REPEATED') repeated.push(definition);
  }
  const { type } = path.at(-1)!.element;
  const isText = kind === 'text';
  const fits = isText ? type === 'BYTE_ARRAY' : NUMBER_TYPES.includes(type);
  if (!fits || repeated.length !== (isText ? 0 : kind)) {
    throw wrongType(where, name, kind, `${repeated.length} lists around ${type}`);
  }
  return { name, kind, path, levels: [repeated[0] ?? definition, repeated[1] ?? definition, definition] };
}

function wrongType(where: string, name: string, kind: ColumnKind, got: string): StillhouseError {
  const expected = { text: 'text', 1: 'a list of numbers', 2: 'a list of lists of numbers' }[kind];
  return new StillhouseError({
    code: 'IMPORT_COLUMN_TYPE',
    where,
    problem: `column ${name} has another type`,
    expected,
    got,
  });
}

const unreadable = (where: string, problem: string, cause?: unknown) =>
  new StillhouseError({
    code: 'IMPORT_FILE_UNREADABLE',
    where,
    problem: cause === undefined ? problem : `${problem} (${(cause as Error).message})`,
    remedy: 'Write it with pyarrow or datasets, uncompressed or with snappy',
    ...(cause === undefined ? {} : { cause }),
  });

/** The cells of a column in one row group; a row may begin in one page and end in the next. */
async function* readCells(source: OpenFile, group: RowGroup, leaf: Leaf): AsyncGenerator<unknown> {
  const [outer, inner, value] = leaf.levels;
  let lengths: number[] = [];
  let values: number[] = [];
  let started = false;
  let isNull = false;
  const finish = () => {
    const cell = isNull ? undefined : leaf.kind === 2 ? { lengths, values } : values;
    [lengths, values, isNull] = [[], [], false];
    return cell;
  };
  for await (const page of readPages(source, group, leaf)) {
    if (leaf.kind === 'text') {
      yield* page.definition.length === 0
        ? page.values.map(decodeText)
        : spreadNulls(page.values, page.definition, value).map((one) => (one === undefined ? one : decodeText(one)));
      continue;
    }
    const numbers = page.values;
    let at = 0;
    const levelCount = page.repetition.length;
    for (let i = 0; i < levelCount; i++) {
      const definition = page.definition.length === 0 ? value : page.definition[i]!;
      const repetition = page.repetition[i]!;
      if (repetition === 0) {
        if (started) yield finish();
        started = true;
        // Below the list itself: a null, unless the list is merely empty.
        isNull = definition < outer - 1;
      }
      if (definition < outer) continue;
      if (leaf.kind === 2) {
        if (repetition < 2) lengths.push(0);
        if (definition < inner) continue;
        lengths[lengths.length - 1]!++;
      }
      values.push(definition === value ? Number(numbers[at++]) : Number.NaN);
    }
  }
  if (started) yield finish();
}

const decodeText = (bytes: unknown) => Buffer.from(bytes as Uint8Array).toString('utf8');

function spreadNulls(values: readonly unknown[], definition: readonly number[], full: number): unknown[] {
  let at = 0;
  return definition.map((level) => (level === full ? values[at++] : undefined));
}

interface Page {
  readonly values: readonly unknown[];
  /** Empty if every value is there. */
  readonly definition: readonly number[];
  readonly repetition: readonly number[];
}

/** The data pages of a column chunk, one after the other from the file. */
async function* readPages({ path, file, tree }: OpenFile, group: RowGroup, leaf: Leaf): AsyncGenerator<Page> {
  const schemaPath = getTreePath(
    tree,
    leaf.path.slice(1).map(({ element }) => element.name),
  );
  const chunk = group.columns.find(({ meta_data }) => meta_data?.path_in_schema[0] === leaf.name)?.meta_data;
  if (chunk === undefined) throw unreadable(path, `column ${leaf.name} is missing in a row group`);
  const { element } = schemaPath.at(-1)!;
  const decoder = { ...chunk, pathInSchema: chunk.path_in_schema, schemaPath, element, parsers: DEFAULT_PARSERS };
  const dictionaryStart = Number(chunk.dictionary_page_offset ?? 0n);
  let offset = dictionaryStart > 0 ? dictionaryStart : Number(chunk.data_page_offset);
  const end = offset + Number(chunk.total_compressed_size);
  let dictionary: ArrayLike<unknown> | undefined;
  let remaining = Number(chunk.num_values);
  while (remaining > 0) {
    if (offset >= end) throw unreadable(path, `column ${leaf.name} ends early`);
    const { header, headerBytes } = await readHeader(path, file, offset, end);
    const size = header.compressed_page_size;
    if (size < 0 || size > LARGEST_PAGE_BYTES || header.uncompressed_page_size > LARGEST_PAGE_BYTES) {
      throw unreadable(path, `a page of column ${leaf.name} claims ${header.uncompressed_page_size} bytes`);
    }
    const claimed = (header.data_page_header ?? header.data_page_header_v2 ?? header.dictionary_page_header)
      ?.num_values;
    if (claimed === undefined || claimed < 0 || claimed > MOST_PAGE_VALUES) {
      throw unreadable(path, `a page of column ${leaf.name} claims ${claimed} values`);
    }
    const body = await readBytes(file, offset + headerBytes, size);
    if (body.length < size) throw unreadable(path, `column ${leaf.name} is cut off`);
    offset += headerBytes + size;
    try {
      if (header.type === 'DICTIONARY_PAGE') {
        const page = decompressPage(body, header.uncompressed_page_size, chunk.codec, undefined);
        const view = new DataView(page.buffer, page.byteOffset, page.byteLength);
        dictionary = readPlain(
          { view, offset: 0 },
          chunk.type,
          header.dictionary_page_header!.num_values,
          element.type_length,
        );
        continue;
      }
      const [count, page] =
        header.type === 'DATA_PAGE_V2'
          ? [header.data_page_header_v2!.num_values, readDataPageV2(body, header, decoder)]
          : [
              header.data_page_header!.num_values,
              readDataPage(
                decompressPage(body, header.uncompressed_page_size, chunk.codec, undefined),
                header.data_page_header!,
                decoder,
              ),
            ];
      const { encoding } = (header.data_page_header_v2 ?? header.data_page_header)!;
      const isIndexed = encoding === 'RLE_DICTIONARY' || encoding === 'PLAIN_DICTIONARY';
      const stored = Array.from(page.dataPage as ArrayLike<unknown>);
      remaining -= count;
      yield {
        values: isIndexed ? stored.map((index) => dictionary![index as number]) : stored,
        definition: page.definitionLevels ?? [],
        repetition: page.repetitionLevels,
      };
    } catch (cause) {
      throw cause instanceof StillhouseError ? cause : unreadable(path, `column ${leaf.name} cannot be read`, cause);
    }
  }
}

async function readHeader(path: string, file: FileHandle, offset: number, end: number) {
  for (let window = HEADER_WINDOW_BYTES; ; window *= 16) {
    const bytes = await readBytes(file, offset, Math.min(window, end - offset));
    const reader = { view: new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), offset: 0 };
    try {
      const header = parquetHeader(reader);
      return { header, headerBytes: reader.offset };
    } catch (cause) {
      // Statistics in a header can be long.
      if (window >= end - offset || window > 1 << 26) throw unreadable(path, 'a page header cannot be read', cause);
    }
  }
}

async function readBytes(file: FileHandle, offset: number, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  let got = 0;
  while (got < length) {
    const { bytesRead } = await file.read(bytes, got, length - got, offset + got);
    if (bytesRead === 0) break;
    got += bytesRead;
  }
  return bytes.subarray(0, got);
}
