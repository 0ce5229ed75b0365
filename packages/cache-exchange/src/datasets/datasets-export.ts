import { StillhouseError } from '@stillhouse/errors';
import type { TeacherCache } from '@stillhouse/teacher-cache';
import { labelMetadata, listCacheColumns, toCacheRow } from '../export/cache-columns.ts';
import { type ExportResult, writeExport } from '../export/export-folder.ts';
import type { ParquetColumn } from '../parquet/parquet-columns.ts';

/** What `datasets` allows as the name of a split. */
const SPLIT_NAME = /^\w+(\.\w+)*$/;

/**
 * Writes a cache as a folder that `datasets.load_dataset(DIR)` loads with typed features: `data/SPLIT-00000.parquet`
 * and so on by the rows' splits (`train` for rows without), and a dataset card that names them.
 * @throws StillhouseError EXPORT_SPLIT_INVALID and those of `writeExport`
 */
export async function exportDatasets(cache: TeacherCache, outDir: string): Promise<ExportResult> {
  const parts = new Map<string, { readonly split: string; readonly order: number[] }>();
  const splits = new Set<string>();
  for (const [shard, { firstRow, rowCount }] of cache.manifest.shards.entries()) {
    const order = Array.from({ length: rowCount }, (_, i) => firstRow + i);
    let index = firstRow;
    for await (const { row } of cache.rows(order, {})) {
      const split = requireSplit(row.id, row.split ?? 'train');
      splits.add(split);
      const name = `data/${split}-${String(shard).padStart(5, '0')}.parquet`;
      const part = parts.get(name) ?? { split, order: [] };
      part.order.push(index++);
      parts.set(name, part);
    }
  }
  const columns = await listCacheColumns(cache, 'nested');
  const features = JSON.stringify({ info: { features: Object.fromEntries(columns.map(describeFeature)) } });
  return writeExport({
    cache,
    outDir,
    parts: [...parts].map(([name, { order }]) => ({ name, order })),
    select: cache.openLabels,
    columns,
    // Where `datasets` looks for the types it is to give.
    metadata: { ...labelMetadata(cache), huggingface: features },
    convert: toCacheRow,
    texts: [{ name: 'README.md', text: printCard(cache, [...splits].sort(), columns) }],
  });
}

function requireSplit(row: string, split: string): string {
  if (SPLIT_NAME.test(split)) return split;
  throw new StillhouseError({
    code: 'EXPORT_SPLIT_INVALID',
    where: `row ${row}`,
    problem: '`datasets` allows no split of that name',
    expected: 'letters, digits, underscores and dots between them',
    got: split,
    remedy: 'Export --format parquet, where split is a column like others',
  });
}

/** A column's type in the words of `datasets`. */
function describeFeature<Row>({ name, schema, maxRepetition }: ParquetColumn<Row>): readonly [string, unknown] {
  const { type, converted_type } = schema.at(-1)!;
  const dtype =
    type === 'BYTE_ARRAY' ? 'string' : type === 'FLOAT' ? 'float32' : converted_type === 'INT_8' ? 'int8' : 'int32';
  let feature: unknown = { dtype, _type: 'Value' };
  for (let depth = 0; depth < maxRepetition; depth++) feature = { feature, _type: 'List' };
  return [name, feature];
}

function printCard<Row>(
  cache: TeacherCache,
  splits: readonly string[],
  columns: readonly ParquetColumn<Row>[],
): string {
  const { teacher } = cache.description;
  return [
    '---',
    'configs:',
    '- config_name: default',
    '  data_files:',
    ...splits.flatMap((split) => [`  - split: ${split}`, `    path: data/${split}-*.parquet`]),
    '---',
    '',
    `Labels of the teacher ${teacher?.name ?? '(none)'}, from the Stillhouse teacher cache \`${cache.digest}\`.`,
    '',
    '| column | |',
    '|---|---|',
    ...columns.map(({ name, description }) => `| \`${name}\` | ${description} |`),
    '',
  ].join('\n');
}
