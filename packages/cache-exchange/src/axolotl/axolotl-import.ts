import { basename } from 'node:path';
import { type ImportOptions, type ImportResult, importRows, withParquetFiles } from '../import/import-cache.ts';
import { requireColumns } from '../import/import-columns.ts';
import { type ForeignRow, invalid } from '../import/import-rows.ts';
import type { NestedCell, ParquetRows, RowOf } from '../parquet/parquet-rows.ts';
import { maskOf } from '../training-labels.ts';
import type { AxolotlAlignment } from './axolotl-export.ts';

export interface AxolotlImportOptions extends ImportOptions {
  /** Where the label of a position stands in a row. Default `position`, as axolotl's trainer reads it from 0.10 on. */
  readonly alignment?: AxolotlAlignment;
  /**
   * The temperature of the rows' logprobs. Default 1. Others are brought back to T = 1 over the stored ids, which is as
   * much as such rows still hold.
   */
  readonly temperature?: number;
}

const COLUMNS = {
  row_id: 'text',
  input_ids: 1,
  labels: 1,
  attention_mask: 1,
  target_token_ids: 2,
  target_logprobs: 2,
  target_mask: 2,
} as const;
type SourceRow = RowOf<typeof COLUMNS>;

/**
 * Reads rows that axolotl's KD plugin has prepared, as Parquet, into a cache.
 * @throws StillhouseError IMPORT_COLUMN_MISSING, IMPORT_LABELS_INVALID and those of `importRows`
 */
export async function importAxolotl(options: AxolotlImportOptions): Promise<ImportResult> {
  return withParquetFiles(options.from, async (files) => {
    for (const file of files) {
      requireColumns(
        file,
        ['input_ids', 'labels', 'target_token_ids', 'target_logprobs'],
        'Rows that are still text (messages, logprobs) must be prepared by `axolotl preprocess` first',
      );
    }
    return importRows(options, files, {
      rowCount: files.reduce((sum, { rowCount }) => sum + rowCount, 0),
      k: Math.min(await findLargestK(files), options.teacher.vocabSize),
      precision: 'stored',
      read: (from) => readRows(from, options),
    });
  });
}

async function findLargestK(files: readonly ParquetRows[]): Promise<number> {
  let most = 1;
  for (const file of files) {
    for await (const { target_token_ids: ids } of file.rows({ target_token_ids: 2 }))
      for (const length of ids?.lengths ?? []) most = Math.max(most, length);
  }
  return most;
}

async function* readRows(
  files: readonly ParquetRows[],
  { alignment = 'position', temperature = 1 }: AxolotlImportOptions,
): AsyncGenerator<ForeignRow> {
  const shift = alignment === 'token' ? 1 : 0;
  for (const file of files) {
    let index = 0;
    for await (const row of file.rows(COLUMNS)) {
      const where = `${file.path}, row ${index}`;
      const id = row.row_id ?? `${basename(file.path)}:${index}`;
      index++;
      const length = trimPadding(row, where);
      const labels = row.labels!.slice(0, length);
      for (const [token, label] of labels.entries()) {
        if (label === -100 || label === row.input_ids![token]) continue;
        throw invalid(
          `${where}, token ${token}`,
          'the label is another id than the token',
          String(row.input_ids![token]),
          label,
        );
      }
      const { ids, logprobs, mask } = openTargets(row, where);
      const labelAt = (position: number) => {
        const entry = position + shift;
        const values = logprobs.at(entry);
        const kept = mask?.at(entry).map((bit) => bit === 1);
        const keep = <T>(list: readonly T[]) => (kept === undefined ? list : list.filter((_, i) => kept[i]));
        const [keptIds, keptValues] = [keep(ids.at(entry)), keep(values)];
        if (keptIds.length === 0) return undefined;
        return { ids: keptIds, logprobs: temperature === 1 ? keptValues : undoTemperature(keptValues, temperature) };
      };
      yield {
        id,
        where,
        inputIds: Int32Array.from(row.input_ids!.slice(0, length)),
        lossMask: maskOf(labels, length),
        labelAt,
      };
    }
  }
}

/** The tokens before the padding at a row's end. */
function trimPadding({ input_ids: ids, labels, attention_mask: mask }: SourceRow, where: string): number {
  const length = ids?.length ?? 0;
  if (labels?.length !== length) {
    throw invalid(where, 'labels has another length than input_ids', String(length), labels?.length);
  }
  if (mask === undefined) return length;
  if (mask.length !== length) {
    throw invalid(where, 'attention_mask has another length than input_ids', String(length), mask.length);
  }
  const padding = mask.indexOf(0);
  const end = padding < 0 ? length : padding;
  const odd = mask.findIndex((bit, i) => bit !== (i < end ? 1 : 0));
  if (odd >= 0) throw invalid(where, 'attention_mask is not ones and then padding: packed rows hold several sequences');
  return end;
}

interface Lists {
  readonly count: number;
  readonly lengths: readonly number[];
  at(index: number): readonly number[];
}

function openLists({ lengths, values }: NestedCell): Lists {
  const starts = [0];
  for (const length of lengths) starts.push(starts.at(-1)! + length);
  return { count: lengths.length, lengths, at: (index) => values.slice(starts[index] ?? 0, starts[index + 1] ?? 0) };
}

function openTargets(row: SourceRow, where: string) {
  const none: NestedCell = { lengths: [], values: [] };
  const ids = openLists(row.target_token_ids ?? none);
  const logprobs = openLists(row.target_logprobs ?? none);
  const mask = row.target_mask === undefined ? undefined : openLists(row.target_mask);
  const length = row.input_ids!.length;
  for (const [name, lists] of [
    ['target_token_ids', ids],
    ['target_logprobs', logprobs],
    ...(mask === undefined ? [] : [['target_mask', mask] as const]),
  ] as const) {
    if (lists.count !== length) {
      throw invalid(where, `${name} has another length than input_ids`, String(length), lists.count);
    }
    const odd = lists.lengths.findIndex((count, i) => count !== ids.lengths[i]);
    if (odd >= 0) {
      throw invalid(
        `${where}, entry ${odd}`,
        `${name} and target_token_ids differ in length`,
        String(ids.lengths[odd]),
        lists.lengths[odd],
      );
    }
  }
  return { ids, logprobs, mask };
}

/** log p at T = 1 over the same ids: p^T, normalised. */
function undoTemperature(logprobs: readonly number[], temperature: number): number[] {
  const raised = logprobs.map((logprob) => logprob * temperature);
  const most = Math.max(...raised);
  const norm = most + Math.log(raised.reduce((sum, value) => sum + Math.exp(value - most), 0));
  return raised.map((value) => value - norm);
}
