import { basename, join } from 'node:path';
import { type ImportOptions, type ImportResult, importRows, withParquetFiles } from '../import/import-cache.ts';
import { requireColumns } from '../import/import-columns.ts';
import { type ForeignRow, invalid } from '../import/import-rows.ts';
import type { NestedCell, ParquetRows, RowOf } from '../parquet/parquet-rows.ts';
import { maskOf } from '../training-labels.ts';
import { type DistillKitConfig, readDistillKitConfig } from './distillkit-config.ts';
import { createDistillKitPacking, type DistillKitPacking } from './distillkit-packing.ts';

export interface DistillKitImportOptions extends ImportOptions {
  /** The configuration the labels were captured with; by default `compression_config.yaml` in the folder. */
  readonly compressionConfig?: string;
}

const COLUMNS = {
  row_id: 'text',
  input_ids: 1,
  labels: 1,
  attention_mask: 1,
  compressed_logprobs: 2,
  bytepacked_indices: 2,
} as const;
type SourceRow = RowOf<typeof COLUMNS>;

/**
 * Reads a data set that DistillKit 1.0 captured (or `exportDistillKit` wrote) into a cache. DistillKit's entry p is the
 * label of position p, as here. Rows that `distillkit-pack-logits` joined are taken apart again; the last entry of each
 * predicts a token that packing cut off, and is left out.
 * @throws StillhouseError DISTILLKIT_CONFIG_MISSING, DISTILLKIT_CONFIG_INVALID, IMPORT_COLUMN_MISSING,
 *   IMPORT_LABELS_INVALID and those of `importRows`
 */
export async function importDistillKit(options: DistillKitImportOptions): Promise<ImportResult> {
  const config = await readDistillKitConfig(options.compressionConfig ?? join(options.from, 'compression_config.yaml'));
  const packing = createDistillKitPacking(config);
  return withParquetFiles(options.from, async (files) => {
    for (const file of files) {
      requireColumns(
        file,
        ['input_ids', 'compressed_logprobs', 'bytepacked_indices'],
        'Data of the legacy compression (packed_indices, exact_values, coeffs) holds no logprobs; capture it again',
      );
    }
    return importRows(options, files, {
      rowCount: await countSequences(files),
      k: Math.min(config.k, options.teacher.vocabSize),
      precision: config.exactK === config.k ? 'stored' : 'fitted',
      read: (from) => readSequences(from, config, packing),
    });
  });
}

/** The parts of a row that are sequences of their own: runs of one number in a packed row's mask, 0 being padding. */
function findRuns(mask: readonly number[] | undefined, length: number): readonly (readonly [number, number])[] {
  if (mask === undefined) return [[0, length]];
  const runs: [number, number][] = [];
  for (let start = 0; start < mask.length; ) {
    let end = start + 1;
    while (end < mask.length && mask[end] === mask[start]) end++;
    if (mask[start] !== 0) runs.push([start, end]);
    start = end;
  }
  return runs;
}

async function countSequences(files: readonly ParquetRows[]): Promise<number> {
  let count = 0;
  for (const file of files) {
    if (!file.columnNames.includes('attention_mask')) count += file.rowCount;
    else {
      for await (const { attention_mask } of file.rows({ attention_mask: 1 }))
        count += findRuns(attention_mask, 0).length;
    }
  }
  return count;
}

async function* readSequences(
  files: readonly ParquetRows[],
  config: DistillKitConfig,
  packing: DistillKitPacking,
): AsyncGenerator<ForeignRow> {
  for (const file of files) {
    let index = 0;
    for await (const row of file.rows(COLUMNS)) {
      const where = `${file.path}, row ${index}`;
      const name = row.row_id ?? `${basename(file.path)}:${index}`;
      index++;
      const { entries, labelAt } = openRow(row, where, config, packing);
      const length = row.input_ids?.length ?? 0;
      const { attention_mask: mask, labels } = row;
      if (mask !== undefined && mask.length !== length) {
        throw invalid(where, 'attention_mask has another length than input_ids', String(length), mask.length);
      }
      if (labels !== undefined && labels.length !== length) {
        throw invalid(where, 'labels has another length than input_ids', String(length), labels.length);
      }
      const runs = findRuns(mask, length);
      // A capture has no label for what follows the last token; a packed row was cut to those that have one.
      if (entries < length - 1 || entries > length) {
        throw invalid(where, 'there must be a label for each token but the last', `${length - 1}`, entries);
      }
      for (const [number, [start, end]] of runs.entries()) {
        yield {
          id: runs.length === 1 ? name : `${name}#${number}`,
          where: runs.length === 1 ? where : `${where}, sequence ${number}`,
          inputIds: Int32Array.from(row.input_ids!.slice(start, end)),
          lossMask: maskOf(labels?.slice(start, end), end - start),
          labelAt: (position) => labelAt(start + position),
        };
      }
    }
  }
}

function openRow(row: SourceRow, where: string, config: DistillKitConfig, packing: DistillKitPacking) {
  const cut = (cell: NestedCell | undefined, name: string, size: number) => {
    const { lengths, values } = cell ?? { lengths: [], values: [] };
    const odd = lengths.findIndex((length) => length !== size);
    if (odd >= 0) {
      const expected = `${size} bytes by the configuration (d ${config.d}, k ${config.k}, exact_k ${config.exactK})`;
      throw invalid(`${where}, position ${odd}`, `${name} has another size`, expected, lengths[odd]);
    }
    if (values.some((value) => !Number.isInteger(value) || value < 0 || value > 255)) {
      throw invalid(where, `${name} holds what is no byte`);
    }
    const bytes = Uint8Array.from(values);
    return { count: lengths.length, at: (index: number) => bytes.subarray(index * size, (index + 1) * size) };
  };
  const logprobs = cut(row.compressed_logprobs, 'compressed_logprobs', packing.logprobBytes);
  const indices = cut(row.bytepacked_indices, 'bytepacked_indices', packing.indexBytes);
  if (logprobs.count !== indices.count) {
    throw invalid(
      where,
      'compressed_logprobs and bytepacked_indices differ in length',
      String(logprobs.count),
      indices.count,
    );
  }
  const labelAt = (position: number) =>
    position >= logprobs.count
      ? undefined
      : { ids: packing.unpackIds(indices.at(position)), logprobs: packing.unpackLogprobs(logprobs.at(position)) };
  return { entries: logprobs.count, labelAt };
}
