import type { SchemaElement } from 'hyparquet';

/**
 * What one row contributes to a column: its numbers as bytes, and how they nest (Dremel levels, as Parquet has them).
 * `repetition`: 0 begins a row, 1 an entry of the outer list, 2 of the inner; without entries where there is no list.
 * `definition` is the depth that is there: the column's full depth for a value, less for an empty list or a null;
 * without entries where a value is always there.
 */
export interface ColumnValues {
  readonly values: Uint8Array;
  readonly repetition: Uint8Array;
  readonly definition: Uint8Array;
}

export interface ParquetColumn<Row> {
  readonly name: string;
  /** For people: what it holds, in which unit, aligned to what. */
  readonly description: string;
  readonly schema: readonly SchemaElement[];
  /** How many lists surround a value. */
  readonly maxRepetition: 0 | 1 | 2;
  /** As many as the lists; one for a value that may be null. */
  readonly maxDefinition: 0 | 1 | 2;
  /** Whether values are single bytes; Parquet knows none, so they are written by a dictionary of all 256. */
  readonly isBytes: boolean;
  readonly read: (row: Row) => ColumnValues;
}

/** Lists of numbers, some of them empty: `lengths[i]` of `values` in turn belong to entry `positions[i]`. */
export interface SpreadNumbers {
  /** How many lists there are. */
  readonly entries: number;
  /** Which of them hold something, ascending. */
  readonly positions: Int32Array;
  readonly lengths: ArrayLike<number>;
  readonly values: Int32Array | Float32Array | Uint8Array;
}

export const int32: SchemaElement = { name: 'element', type: 'INT32', repetition_type: 'REQUIRED' };
export const int8: SchemaElement = { ...int32, converted_type: 'INT_8' };
export const uint8: SchemaElement = { ...int32, converted_type: 'UINT_8' };
export const uint64: SchemaElement = {
  name: 'element',
  type: 'INT64',
  converted_type: 'UINT_64',
  repetition_type: 'REQUIRED',
};
export const float32: SchemaElement = { name: 'element', type: 'FLOAT', repetition_type: 'REQUIRED' };

const NONE = new Uint8Array(0);
const PRESENT = Uint8Array.of(1);
const ABSENT = Uint8Array.of(0);

/** The three levels that Parquet gives a list: the column, its repeated entry, the element. */
function listOf(name: string, element: readonly SchemaElement[]): readonly SchemaElement[] {
  return [
    { name, repetition_type: 'REQUIRED', converted_type: 'LIST', num_children: 1 },
    { name: 'list', repetition_type: 'REPEATED', num_children: 1 },
    ...element,
  ];
}

const bytesOf = (values: ArrayBufferView) => new Uint8Array(values.buffer, values.byteOffset, values.byteLength);

function lengthFirst(bytes: Uint8Array): Uint8Array {
  const values = new Uint8Array(4 + bytes.length);
  new DataView(values.buffer).setInt32(0, bytes.length, true);
  values.set(bytes, 4);
  return values;
}

/** A string; null where `read` gives undefined, if it may. */
export function textColumn<Row>(
  name: string,
  description: string,
  read: (row: Row) => string | undefined,
  { optional }: { readonly optional: boolean } = { optional: false },
): ParquetColumn<Row> {
  const repetition_type = optional ? 'OPTIONAL' : 'REQUIRED';
  return {
    name,
    description,
    schema: [{ name, type: 'BYTE_ARRAY', converted_type: 'UTF8', repetition_type }],
    maxRepetition: 0,
    maxDefinition: optional ? 1 : 0,
    isBytes: false,
    read: (row) => {
      const text = read(row);
      const values = text === undefined ? NONE : lengthFirst(Buffer.from(text, 'utf8'));
      return { values, repetition: NONE, definition: !optional ? NONE : text === undefined ? ABSENT : PRESENT };
    },
  };
}

/** Bytes as they are: a typed array in little-endian order. */
export function binaryColumn<Row>(
  name: string,
  description: string,
  read: (row: Row) => ArrayBufferView,
): ParquetColumn<Row> {
  return {
    name,
    description,
    schema: [{ name, type: 'BYTE_ARRAY', repetition_type: 'REQUIRED' }],
    maxRepetition: 0,
    maxDefinition: 0,
    isBytes: false,
    read: (row) => ({ values: lengthFirst(bytesOf(read(row))), repetition: NONE, definition: NONE }),
  };
}

/** One whole number a row. */
export function numberColumn<Row>(name: string, description: string, read: (row: Row) => number): ParquetColumn<Row> {
  return {
    name,
    description,
    schema: [{ name, type: 'INT32', repetition_type: 'REQUIRED' }],
    maxRepetition: 0,
    maxDefinition: 0,
    isBytes: false,
    read: (row) => ({ values: bytesOf(Int32Array.of(read(row))), repetition: NONE, definition: NONE }),
  };
}

/** A list of numbers, each as wide as the element. */
export function listColumn<Row>(
  name: string,
  description: string,
  element: SchemaElement,
  read: (row: Row) => Int32Array | BigInt64Array,
): ParquetColumn<Row> {
  return {
    name,
    description,
    schema: listOf(name, [element]),
    maxRepetition: 1,
    maxDefinition: 1,
    isBytes: false,
    read: (row) => {
      const values = read(row);
      const levels = Math.max(1, values.length);
      const repetition = new Uint8Array(levels).fill(1);
      repetition[0] = 0;
      const definition = new Uint8Array(levels).fill(values.length === 0 ? 0 : 1);
      return { values: bytesOf(values), repetition, definition };
    },
  };
}

/** A list of lists of numbers; of single bytes where `read` gives a Uint8Array and the element is `uint8`. */
export function nestedColumn<Row>(
  name: string,
  description: string,
  element: SchemaElement,
  read: (row: Row) => SpreadNumbers,
): ParquetColumn<Row> {
  return {
    name,
    description,
    schema: listOf(name, listOf('element', [element])),
    maxRepetition: 2,
    maxDefinition: 2,
    isBytes: element === uint8,
    read: (row) => spread(read(row)),
  };
}

function spread({ entries, positions, lengths, values }: SpreadNumbers): ColumnValues {
  let empty = entries - positions.length;
  for (let place = 0; place < positions.length; place++) if (lengths[place] === 0) empty++;
  const levels = values.length + empty || 1;
  const repetition = new Uint8Array(levels).fill(2);
  const definition = new Uint8Array(levels).fill(2);
  repetition[0] = 0;
  if (entries === 0) definition[0] = 0;
  let level = 0;
  let place = 0;
  for (let entry = 0; entry < entries; entry++) {
    repetition[level] = entry === 0 ? 0 : 1;
    const length = positions[place] === entry ? lengths[place++]! : 0;
    if (length === 0) definition[level] = 1;
    level += Math.max(1, length);
  }
  return { values: bytesOf(values), repetition, definition };
}
