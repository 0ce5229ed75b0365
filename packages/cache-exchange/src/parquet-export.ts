import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { explainWriteFailure, publishDirectory, stageDirectory, stageFile } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import {
  type CacheDescription,
  dequantiseHidden,
  type HiddenLayer,
  type HiddenScale,
  type LabelledRow,
  type TeacherCache,
} from '@stillhouse/teacher-cache';
import type { ColumnChunk, SchemaElement } from 'hyparquet';
import { ByteWriter, ParquetWriter, type Writer } from 'hyparquet-writer';
import {
  listOf,
  listValue,
  nestedListValue,
  type ParquetColumn,
  textValue,
  writeColumnChunk,
} from './parquet-columns.ts';

/** A row group is closed once its columns take so much. */
const ROW_GROUP_BYTES = 64 << 20;
/** The size of a page, which a row cannot leave, is a signed 32-bit number. */
const LARGEST_ROW_BYTES = 2 ** 31 - 2 ** 24;

const int32: SchemaElement = { name: 'element', type: 'INT32', repetition_type: 'REQUIRED' };
const int8: SchemaElement = { ...int32, converted_type: 'INT_8' };
const float32: SchemaElement = { name: 'element', type: 'FLOAT', repetition_type: 'REQUIRED' };

/** The columns of an export; labels that a row does not bring are empty at all its positions. */
function exportColumns(
  description: CacheDescription,
  scales: ReadonlyMap<HiddenLayer, HiddenScale>,
): readonly ParquetColumn[] {
  const grid = description.labels.topk?.temperatures.length ?? 0;
  const nothing = new Int32Array(0);
  const nested = (
    name: string,
    element: SchemaElement,
    read: (row: LabelledRow) => Int32Array | Float32Array | undefined,
    lengths: (row: LabelledRow, place: number) => number,
  ): ParquetColumn => ({
    name,
    schema: listOf(name, listOf('element', [element])),
    depth: 2,
    read: (row) => {
      const values = read(row);
      const entries = row.row.inputIds.length - 1;
      return values === undefined
        ? nestedListValue(entries, nothing, () => 0, nothing)
        : nestedListValue(entries, row.positions, (place) => lengths(row, place), values);
    },
  });
  const list = (name: string, element: SchemaElement, read: (row: LabelledRow) => Int32Array): ParquetColumn => ({
    name,
    schema: listOf(name, [element]),
    depth: 1,
    read: (row) => listValue(read(row)),
  });
  const count = (row: LabelledRow, place: number) => row.topk!.counts[place]!;
  return [
    {
      name: 'row_id',
      schema: [{ name: 'row_id', type: 'BYTE_ARRAY', converted_type: 'UTF8', repetition_type: 'REQUIRED' }],
      depth: 0,
      read: ({ row }) => textValue(row.id),
    },
    list('input_ids', int32, ({ row }) => row.inputIds),
    list('loss_mask', int8, ({ row }) => Int32Array.from(row.lossMask)),
    nested('topk_ids', int32, ({ topk }) => topk?.ids, count),
    nested('topk_logprobs', float32, ({ topk }) => topk?.logprobs, count),
    nested(
      'log_z',
      float32,
      ({ topk }) => topk?.logZ,
      () => grid,
    ),
    ...(description.labels.hidden?.layers ?? []).map((layer) =>
      nested(
        `hidden_${layer}`,
        float32,
        ({ hidden }) => dequantiseHidden(hidden!.get(layer)!, scales.get(layer)),
        ({ hidden }) => hidden!.get(layer)!.width,
      ),
    ),
  ];
}

/**
 * What a row takes in an export, nearly: four bytes a number and two a nested one.
 * @throws StillhouseError EXPORT_ROW_TOO_LARGE
 */
export function measureExportRow({ row, topk, hidden }: LabelledRow): number {
  const labels = [
    topk?.ids.length ?? 0,
    topk?.logZ.length ?? 0,
    ...[...(hidden?.values() ?? [])].map(({ values }) => values.length),
  ];
  const largestBytes = 6 * Math.max(row.inputIds.length, ...labels);
  if (largestBytes > LARGEST_ROW_BYTES) {
    throw new StillhouseError({
      code: 'EXPORT_ROW_TOO_LARGE',
      where: `row ${row.id}`,
      problem: 'the labels of one row do not fit into a Parquet page',
      expected: `at most ${LARGEST_ROW_BYTES} bytes`,
      got: String(largestBytes),
      remedy: 'Open the cache without its hidden groups and export the rest',
    });
  }
  return 8 * row.inputIds.length + 6 * labels.reduce((sum, length) => sum + length, topk?.ids.length ?? 0);
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
  const scales = new Map<HiddenLayer, HiddenScale>();
  const { hidden, topk } = cache.description.labels;
  const layers = (hidden?.layers ?? []).filter((layer) => cache.openLabels.hidden?.includes(layer));
  for (const layer of layers) {
    const scale = await cache.hiddenScale(layer);
    if (scale !== undefined) scales.set(layer, scale);
  }
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
  columns: readonly ParquetColumn[],
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
      writer: Object.assign(bytes, { finish: flush }) as Writer,
      schema: [{ name: 'schema', num_children: columns.length }, ...columns.flatMap(({ schema }) => schema)],
      kvMetadata,
      createdBy: 'stillhouse',
    });
    let group: LabelledRow[] = [];
    let groupBytes = 0;
    const writeGroup = async () => {
      if (group.length === 0) return;
      const start = bytes.offset;
      const chunks: ColumnChunk[] = [];
      for (const column of columns) chunks.push(await writeColumnChunk(bytes as Writer, flush, column, group));
      const sizeBytes = BigInt(bytes.offset - start);
      writer.num_rows += BigInt(group.length);
      writer.row_groups.push({
        columns: chunks,
        num_rows: BigInt(group.length),
        total_byte_size: sizeBytes,
        total_compressed_size: sizeBytes,
      });
      group = [];
      groupBytes = 0;
    };
    for await (const row of rows) {
      const rowBytes = measureExportRow(row);
      if (groupBytes + rowBytes > ROW_GROUP_BYTES) await writeGroup();
      group.push(row);
      groupBytes += rowBytes;
    }
    await writeGroup();
    await writer.finish();
    return (await staged.commit()).sizeBytes;
  } finally {
    await staged.abort();
  }
}
