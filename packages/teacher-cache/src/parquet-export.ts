import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { explainWriteFailure, publishDirectory, stageDirectory, stageFile } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import type { SchemaElement } from 'hyparquet';
import { ByteWriter, ParquetWriter } from 'hyparquet-writer';
import type { TeacherCache } from './cache-reader.ts';
import type { CacheDescription, HiddenLayer } from './description.ts';
import { dequantiseHidden } from './hidden-quantisation.ts';
import type { LabelledRow } from './labelled-row.ts';

/** A row group is closed once it holds so many numbers; the library needs some 40 bytes for each while it encodes. */
const ROW_GROUP_VALUES = 4_000_000;
/** Beyond this the library's arrays outgrow what V8 allows. */
const LARGEST_ROW_VALUES = 100_000_000;

type NestedNumbers = readonly number[] | readonly (readonly number[])[];

interface ExportColumn {
  readonly name: string;
  readonly schema: readonly SchemaElement[];
  readonly read: (row: LabelledRow) => string | NestedNumbers;
  /** Floats hardly compress and are costly to try. */
  readonly codec: 'SNAPPY' | 'UNCOMPRESSED';
}

/** The three levels that Parquet gives a list: the column, its repeated entry, the element. */
function listOf(name: string, element: readonly SchemaElement[]): readonly SchemaElement[] {
  return [
    { name, repetition_type: 'REQUIRED', converted_type: 'LIST', num_children: 1 },
    { name: 'list', repetition_type: 'REPEATED', num_children: 1 },
    ...element,
  ];
}

const int32: SchemaElement = { name: 'element', type: 'INT32', repetition_type: 'REQUIRED' };
const int8: SchemaElement = { ...int32, converted_type: 'INT_8' };
const float32: SchemaElement = { name: 'element', type: 'FLOAT', repetition_type: 'REQUIRED' };

/** L-1 lists, one a label position; empty where nothing is stored. `lengths[i]` numbers belong to `positions[i]`. */
function spread(
  tokenCount: number,
  positions: Int32Array,
  lengths: (place: number) => number,
  values: Int32Array | Float32Array,
): readonly (readonly number[])[] {
  const lists: (readonly number[])[] = Array.from({ length: Math.max(0, tokenCount - 1) }, () => []);
  let start = 0;
  for (const [place, position] of positions.entries()) {
    const end = start + lengths(place);
    lists[position] = Array.from(values.subarray(start, end));
    start = end;
  }
  return lists;
}

function exportColumns(
  description: CacheDescription,
  scales: ReadonlyMap<HiddenLayer, Float32Array>,
): readonly ExportColumn[] {
  const nothing = new Float32Array(0);
  const grid = description.labels.topk?.temperatures.length ?? 0;
  const perPosition = (
    { row, positions }: LabelledRow,
    values: Int32Array | Float32Array | undefined,
    lengths: (place: number) => number,
  ) => spread(row.inputIds.length, values === undefined ? new Int32Array(0) : positions, lengths, values ?? nothing);
  const nested = (name: string, element: SchemaElement, read: ExportColumn['read']): ExportColumn => ({
    name,
    schema: listOf(name, listOf('element', [element])),
    read,
    codec: element === int32 ? 'SNAPPY' : 'UNCOMPRESSED',
  });
  return [
    {
      name: 'row_id',
      schema: [{ name: 'row_id', type: 'BYTE_ARRAY', converted_type: 'UTF8', repetition_type: 'REQUIRED' }],
      read: ({ row }) => row.id,
      codec: 'SNAPPY',
    },
    {
      name: 'input_ids',
      schema: listOf('input_ids', [int32]),
      read: ({ row }) => Array.from(row.inputIds),
      codec: 'SNAPPY',
    },
    {
      name: 'loss_mask',
      schema: listOf('loss_mask', [int8]),
      read: ({ row }) => Array.from(row.lossMask),
      codec: 'SNAPPY',
    },
    nested('topk_ids', int32, (row) => perPosition(row, row.topk?.ids, (place) => row.topk!.counts[place]!)),
    nested('topk_logprobs', float32, (row) =>
      perPosition(row, row.topk?.logprobs, (place) => row.topk!.counts[place]!),
    ),
    nested('log_z', float32, (row) => perPosition(row, row.topk?.logZ, () => grid)),
    ...(description.labels.hidden?.layers ?? []).map((layer) =>
      nested(`hidden_${layer}`, float32, (row) => {
        const states = row.hidden!.get(layer)!;
        return perPosition(row, dequantiseHidden(states, scales.get(layer)), () => states.width);
      }),
    ),
  ];
}

function countValues({ row, topk, hidden }: LabelledRow): number {
  let largest = Math.max(row.inputIds.length, topk?.ids.length ?? 0);
  let total = 2 * row.inputIds.length + 2 * (topk?.ids.length ?? 0) + (topk?.logZ.length ?? 0);
  for (const { values } of hidden?.values() ?? []) {
    largest = Math.max(largest, values.length);
    total += values.length;
  }
  if (largest <= LARGEST_ROW_VALUES) return total;
  throw new StillhouseError({
    code: 'EXPORT_ROW_TOO_LARGE',
    where: `row ${row.id}`,
    problem: 'the labels of one row do not fit into a Parquet page',
    expected: `at most ${LARGEST_ROW_VALUES} numbers in a column`,
    got: String(largest),
    remedy: 'Open the cache without its hidden groups and export the rest',
  });
}

export interface ParquetExport {
  readonly files: readonly string[];
  readonly rowCount: number;
  readonly sizeBytes: number;
}

/**
 * Writes a cache as Parquet for others to read: one file a shard (`00000.parquet` and so on), one row a sequence,
 * columns as FORMAT.md lists them, the groups that the cache was opened with. All files appear at once, or none.
 * @throws StillhouseError EXPORT_FOLDER_NOT_EMPTY, EXPORT_ROW_TOO_LARGE, DISK_FULL, NOT_WRITABLE; what reading throws
 */
export async function exportParquet(cache: TeacherCache, outDir: string): Promise<ParquetExport> {
  await requireEmpty(outDir);
  const scales = new Map<HiddenLayer, Float32Array>();
  const { hidden, topk } = cache.description.labels;
  const layers = (hidden?.layers ?? []).filter((layer) => cache.openLabels.hidden?.includes(layer));
  for (const layer of hidden?.dtype === 'int8' ? layers : []) scales.set(layer, await cache.channelRms(layer));
  const description: CacheDescription = {
    ...cache.description,
    labels: {
      topk: cache.openLabels.topk === true ? topk : null,
      hidden: hidden && layers.length > 0 ? { layers, dtype: hidden.dtype } : null,
      head: false,
    },
  };
  const columns = exportColumns(description, scales);
  const metadata = [
    { key: 'stillhouse.temperatures', value: JSON.stringify(description.labels.topk?.temperatures ?? []) },
    { key: 'stillhouse.positions', value: description.positions },
    { key: 'stillhouse.cache_digest', value: cache.digest },
  ];
  const staged = await stageDirectory(outDir);
  try {
    const files: string[] = [];
    let sizeBytes = 0;
    for (const [index, { firstRow, rowCount }] of cache.manifest.shards.entries()) {
      const name = `${String(index).padStart(5, '0')}.parquet`;
      const order = Array.from({ length: rowCount }, (_, i) => firstRow + i);
      const content = cache.rows(order);
      sizeBytes += await writeParquetFile(join(staged, name), columns, metadata, content);
      files.push(name);
    }
    await publishDirectory(staged, outDir);
    return { files, rowCount: cache.rowCount, sizeBytes };
  } catch (cause) {
    await rm(staged, { recursive: true, force: true });
    throw explainWriteFailure(outDir, cause);
  }
}

async function requireEmpty(outDir: string): Promise<void> {
  const names = await readdir(outDir).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return [];
    if (error.code === 'ENOTDIR') return ['a file'];
    throw error;
  });
  if (names.length === 0) return;
  throw new StillhouseError({
    code: 'EXPORT_FOLDER_NOT_EMPTY',
    where: outDir,
    problem: 'there is something already',
    got: names.slice(0, 3).join(', '),
    remedy: 'Choose another folder or empty this one',
  });
}

async function writeParquetFile(
  path: string,
  columns: readonly ExportColumn[],
  kvMetadata: { key: string; value: string }[],
  rows: AsyncIterable<LabelledRow>,
): Promise<number> {
  const staged = await stageFile(path);
  try {
    const bytes = new ByteWriter(1 << 20);
    const flush = async () => {
      await staged.write(bytes.getBytes());
      bytes.index = 0;
    };
    const writer = new ParquetWriter({
      writer: Object.assign(bytes, { flush, finish: flush }),
      schema: [{ name: 'schema', num_children: columns.length }, ...columns.flatMap(({ schema }) => schema)],
      kvMetadata,
      statistics: false,
      createdBy: 'stillhouse',
    });
    let group: LabelledRow[] = [];
    let values = 0;
    const writeGroup = async () => {
      if (group.length === 0) return;
      const columnData = columns.map(({ name, read, codec }) => {
        const data = group.map((row) => read(row)) as string[];
        return { name, data, codec, encoding: 'PLAIN' as const };
      });
      await writer.write({ columnData, rowGroupSize: group.length });
      group = [];
      values = 0;
    };
    for await (const row of rows) {
      const rowValues = countValues(row);
      if (values + rowValues > ROW_GROUP_VALUES) await writeGroup();
      group.push(row);
      values += rowValues;
    }
    await writeGroup();
    await writer.finish();
    return (await staged.commit()).sizeBytes;
  } finally {
    await staged.abort();
  }
}
