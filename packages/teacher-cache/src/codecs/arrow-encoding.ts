import { StillhouseError } from '@stillhouse/errors';
import { type Data, type DataType, makeData, RecordBatch, type Schema, Struct } from 'apache-arrow';
import { METADATA_COLUMNS, shardSchema } from '../format/arrow-schemas.ts';
import type { CacheDescription, ShardContent } from '../format/description.ts';
import type { HiddenLayer } from '../format/hidden-layer.ts';
import type { HiddenLabels, LabelledRow, TopKLabels } from '../format/labelled-row.ts';
import { BATCH_TARGET_BYTES, LARGEST_BUFFER_BYTES } from './arrow-file-writer.ts';
import { openHiddenCoder } from './hidden-codebook.ts';
import { type HiddenScale, isCodebook } from './hidden-scale.ts';
import { packSampled } from './sampled-packing.ts';
import { packTopK } from './topk-packing.ts';
import type { ZstdCodec } from './zstd.ts';

type Numbers = Int8Array | Int16Array | Uint8Array | Uint16Array | Int32Array | Float32Array;

/** The arrays of many rows as one; a single array is handed on as it is. */
type Concatenate = <T extends Numbers>(parts: readonly T[]) => T;

/**
 * Memory for the joined arrays of one batch, taken again for the next: garbage of this size would keep the collector
 * busier than the disk.
 */
export interface Scratch {
  readonly concatenate: Concatenate;
  /** What was joined so far is no longer needed. */
  reuse(): void;
}

export function openScratch(): Scratch {
  let memory = new ArrayBuffer(0);
  let usedBytes = 0;
  return {
    concatenate: <T extends Numbers>(parts: readonly T[]): T => {
      if (parts.length === 1) return parts[0]!;
      const total = parts.reduce((sum, part) => sum + part.length, 0);
      const numbers = parts[0]!.constructor as unknown as new (memory: ArrayBuffer, at: number, length: number) => T;
      const sizeBytes = total * parts[0]!.BYTES_PER_ELEMENT;
      if (usedBytes + sizeBytes > memory.byteLength) {
        // Arrays of this batch keep the memory before.
        memory = new ArrayBuffer(2 * (usedBytes + sizeBytes) + 8);
        usedBytes = 0;
      }
      const joined = new numbers(memory, usedBytes, total);
      usedBytes = (usedBytes + sizeBytes + 7) & ~7;
      let offset = 0;
      for (const part of parts) {
        joined.set(part as never, offset);
        offset += part.length;
      }
      return joined;
    },
    reuse: () => {
      usedBytes = 0;
    },
  };
}

function offsetsOf(lengths: ArrayLike<number>): Int32Array {
  const offsets = new Int32Array(lengths.length + 1);
  for (let i = 0; i < lengths.length; i++) offsets[i + 1] = offsets[i]! + lengths[i]!;
  return offsets;
}

// The library's generics for nested types lose themselves; these few functions are where types meet arrays.
const primitive = (type: DataType, data: Numbers) =>
  makeData({ type, length: data.length, nullCount: 0, data } as never);

function list(type: DataType, valueOffsets: Int32Array, child: Data): Data {
  return makeData({ type, length: valueOffsets.length - 1, nullCount: 0, valueOffsets, child } as never);
}

const fixedList = (type: DataType, length: number, child: Data): Data =>
  makeData({ type, length, nullCount: 0, child } as never);

const childType = (type: DataType) => (type.children as { type: DataType }[])[0]!.type;

function texts(type: DataType, values: readonly (string | undefined)[]): Data {
  const encoded = values.map((value) => Buffer.from(value ?? '', 'utf8'));
  const nullCount = values.filter((value) => value === undefined).length;
  const nullBitmap = new Uint8Array(Math.ceil(values.length / 8));
  for (const [i, value] of values.entries()) if (value !== undefined) nullBitmap[i >> 3]! |= 1 << (i & 7);
  return makeData({
    type,
    length: values.length,
    nullCount,
    ...(nullCount === 0 ? {} : { nullBitmap }),
    valueOffsets: offsetsOf(encoded.map((bytes) => bytes.length)),
    data: new Uint8Array(Buffer.concat(encoded)),
  } as never);
}

/** A column of byte strings. */
export function binaries(type: DataType, values: readonly Uint8Array[]): Data {
  return makeData({
    type,
    length: values.length,
    nullCount: 0,
    valueOffsets: offsetsOf(values.map((bytes) => bytes.length)),
    data: new Uint8Array(Buffer.concat(values)),
  } as never);
}

export function assembleBatch(schema: Schema, columns: readonly Data[]): RecordBatch {
  const type = new Struct(schema.fields);
  const length = columns[0]!.length;
  return new RecordBatch(schema, makeData({ type, length, nullCount: 0, children: [...columns] }) as never);
}

function encodeRows(schema: Schema, labelled: readonly LabelledRow[], concatenate: Concatenate): RecordBatch {
  const rows = labelled.map(({ row }) => row);
  const type = (column: number) => schema.fields[column]!.type;
  const offsets = offsetsOf(rows.map((row) => row.inputIds.length));
  const masks = rows.map(({ lossMask }) => new Int8Array(lossMask.buffer, lossMask.byteOffset, lossMask.length));
  return assembleBatch(schema, [
    texts(
      type(0),
      rows.map((row) => row.id),
    ),
    list(type(1), offsets, primitive(childType(type(1)), concatenate(rows.map((row) => row.inputIds)))),
    list(type(2), offsets, primitive(childType(type(2)), concatenate(masks))),
    ...METADATA_COLUMNS.map((name, i) =>
      texts(
        type(3 + i),
        rows.map((row) => row[name]),
      ),
    ),
  ]);
}

function encodeTopK(schema: Schema, labelled: readonly LabelledRow[], concatenate: Concatenate): RecordBatch {
  const labels = labelled.map(({ topk }) => topk as TopKLabels);
  const [idType, idsType, logprobsType, logZType] = schema.fields.map(({ type }) => type) as [
    DataType,
    DataType,
    DataType,
    DataType?,
  ];
  const positions = offsetsOf(labels.map(({ counts }) => counts.length));
  const counts = concatenate(labels.map((one) => one.counts));
  const entries = offsetsOf(counts);
  const ragged = (type: DataType, values: Numbers) => {
    const inner = childType(type);
    return list(type, positions, list(inner, entries, primitive(childType(inner), values)));
  };
  const grids = (type: DataType) => {
    const grid = childType(type);
    const logZ = primitive(childType(grid), concatenate(labels.map((one) => one.logZ)));
    return list(type, positions, fixedList(grid, counts.length, logZ));
  };
  return assembleBatch(schema, [
    texts(
      idType,
      labelled.map(({ row }) => row.id),
    ),
    ragged(idsType, concatenate(labels.map((one) => one.ids))),
    ragged(logprobsType, concatenate(labels.map((one) => one.logprobs))),
    ...(logZType === undefined ? [] : [grids(logZType)]),
  ]);
}

function encodeHidden(
  schema: Schema,
  labelled: readonly LabelledRow[],
  layer: HiddenLayer,
  concatenate: Concatenate,
): RecordBatch {
  const labels = labelled.map(({ hidden }) => hidden?.get(layer) as HiddenLabels);
  const [idType, valuesType, scaleType] = schema.fields.map(({ type }) => type) as [DataType, DataType, DataType?];
  const positions = offsetsOf(labelled.map((row) => row.positions.length));
  const vector = childType(valuesType);
  const values = primitive(childType(vector), concatenate(labels.map((one) => one.values as Numbers)));
  const columns = [
    texts(
      idType,
      labelled.map(({ row }) => row.id),
    ),
    list(valuesType, positions, fixedList(vector, positions.at(-1)!, values)),
  ];
  if (scaleType !== undefined && labels[0]?.groupScale !== undefined) {
    const scales = concatenate(labels.map((one) => one.groupScale!));
    const group = childType(scaleType);
    const child = fixedList(group, positions.at(-1)!, primitive(childType(group), scales));
    columns.push(list(scaleType, positions, child));
  } else if (scaleType !== undefined) {
    const scales = concatenate(labels.map((one) => one.tokenScale!));
    columns.push(list(scaleType, positions, primitive(childType(scaleType), scales)));
  }
  return assembleBatch(schema, columns);
}

/** Packs the labels of a row, where a group keeps one blob a row. */
function openPacker(
  { labels: { topk }, teacher }: CacheDescription,
  group: ShardContent,
  zstd: ZstdCodec,
): ((row: LabelledRow) => Uint8Array) | undefined {
  if (group === 'sampled') return (row) => packSampled(row.sampled!, teacher!.vocabSize, zstd);
  if (group !== 'topk' || topk?.packing !== 'zstd') return undefined;
  return (row) => packTopK(row.topk!, topk.logprobDtype ?? 'float32', teacher!.vocabSize, zstd);
}

function encodePacked(schema: Schema, labelled: readonly LabelledRow[], packed: readonly Uint8Array[]): RecordBatch {
  const [idType, packedType] = schema.fields.map(({ type }) => type) as [DataType, DataType];
  const ids = texts(
    idType,
    labelled.map(({ row }) => row.id),
  );
  return assembleBatch(schema, [ids, binaries(packedType, packed)]);
}

/** The size of the largest column of a row in a group's file, or of what readers unpack it to: nearly all of it. */
function largestColumnBytes(row: LabelledRow, group: ShardContent): number {
  if (group === 'rows') return row.row.inputIds.byteLength;
  if (group === 'topk') return Math.max(row.topk!.ids.byteLength, row.topk!.logZ.byteLength);
  if (group === 'sampled') return row.sampled!.ids.byteLength;
  return row.hidden!.get(group)!.values.byteLength;
}

/** What the files of a shard are written with. */
export interface ShardCodecs {
  readonly zstd: ZstdCodec;
  /** Of the layer; needed for `coded`. */
  readonly scale?: HiddenScale | undefined;
  /** Of an encoder that is done; a new one by default. */
  readonly scratch?: Scratch | undefined;
}

/** Turns the rows of one group of a shard into record batches. The arrays of a batch are good until the next call. */
export interface ShardEncoder {
  /** @returns the batch that the row no longer fits into, if any. @throws StillhouseError CACHE_ROW_TOO_LARGE */
  push(row: LabelledRow): RecordBatch | undefined;
  /** @returns the rows of no batch yet. */
  flush(): RecordBatch | undefined;
}

/** Rows stay in order; a batch is closed at about 512 KiB, with one row at least. */
export function openShardEncoder(
  group: ShardContent,
  description: CacheDescription,
  { scale, zstd, scratch = openScratch() }: ShardCodecs,
): ShardEncoder {
  const schema = shardSchema(description, group);
  const coder = scale !== undefined && isCodebook(scale) ? openHiddenCoder(scale.coder) : undefined;
  const pack = openPacker(description, group, zstd);
  const { concatenate, reuse } = scratch;
  let batch: LabelledRow[] = [];
  let blobs: Uint8Array[] = [];
  let batchBytes = 0;
  const encode = () => {
    if (group === 'rows') return encodeRows(schema, batch, concatenate);
    if (group === 'sampled' || pack !== undefined) return encodePacked(schema, batch, blobs);
    if (group === 'topk') return encodeTopK(schema, batch, concatenate);
    if (coder === undefined) return encodeHidden(schema, batch, group, concatenate);
    const bytes = batch.map(({ hidden }) => coder.encode(hidden!.get(group)!.values as Int16Array));
    return encodePacked(schema, batch, bytes);
  };
  const flush = () => {
    if (batch.length === 0) return undefined;
    reuse();
    const encoded = encode();
    batch = [];
    blobs = [];
    batchBytes = 0;
    return encoded;
  };
  return {
    push: (row) => {
      const rowBytes = largestColumnBytes(row, group);
      if (rowBytes > LARGEST_BUFFER_BYTES) {
        throw new StillhouseError({
          code: 'CACHE_ROW_TOO_LARGE',
          where: `row ${row.row.id}`,
          problem: 'the labels of one row do not fit into an Arrow column',
          expected: `at most ${LARGEST_BUFFER_BYTES} bytes`,
          got: String(rowBytes),
          remedy: 'Cut rows with --max-length or store a smaller hidden dtype',
        });
      }
      const blob = pack?.(row);
      const storedBytes = blob?.length ?? rowBytes;
      const full = batchBytes + storedBytes > BATCH_TARGET_BYTES ? flush() : undefined;
      batch.push(row);
      if (blob !== undefined) blobs.push(blob);
      batchBytes += storedBytes;
      return full;
    },
    flush,
  };
}

/**
 * The record batches of one group of a shard, as of {@link openShardEncoder}; each is good until the next is asked for.
 */
export function* encodeShard(
  rows: readonly LabelledRow[],
  group: ShardContent,
  description: CacheDescription,
  codecs: ShardCodecs,
): Generator<RecordBatch> {
  const encoder = openShardEncoder(group, description, codecs);
  for (const row of rows) {
    const full = encoder.push(row);
    if (full !== undefined) yield full;
  }
  const rest = encoder.flush();
  if (rest !== undefined) yield rest;
}
