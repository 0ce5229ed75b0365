import {
  dequantiseHidden,
  describeHiddenLayer,
  type HiddenLayer,
  type HiddenScale,
  type LabelledRow,
  printTeacher,
  type TeacherCache,
} from '@stillhouse/teacher-cache';
import {
  binaryColumn,
  float32,
  int8,
  int32,
  listColumn,
  nestedColumn,
  type ParquetColumn,
  type SpreadNumbers,
  textColumn,
} from '../parquet/parquet-columns.ts';
import { refuseLargeColumn } from '../parquet/parquet-file.ts';

/** A row of a cache on its way into a file. */
export type CacheRow = LabelledRow & { readonly id: string };

export type ParquetLayout = 'nested' | 'packed';

const POSITIONS = 'entry p belongs to position p, which predicts token p + 1';

/**
 * All that a cache was opened with as columns.
 * - `nested`: lists, one entry for each of the L - 1 label positions, empty where nothing is stored;
 * - `packed`: little-endian arrays as bytes, only the P stored positions, which the column `positions` names.
 */
export async function listCacheColumns(
  cache: TeacherCache,
  layout: ParquetLayout,
): Promise<readonly ParquetColumn<CacheRow>[]> {
  const { topk, hidden } = cache.description.labels;
  const layers = (hidden?.layers ?? []).filter((layer) => cache.openLabels.hidden?.includes(layer));
  const scales = new Map<HiddenLayer, HiddenScale | undefined>();
  for (const layer of layers) scales.set(layer, await cache.hiddenScale(layer));
  const grid = cache.openLabels.topk === true ? topk!.temperatures : [];
  const states = (row: CacheRow, layer: HiddenLayer) => dequantiseHidden(row.hidden!.get(layer)!, scales.get(layer));
  return layout === 'nested' ? nestedColumns(grid, layers, states) : packedColumns(grid, layers, states);
}

type ReadStates = (row: CacheRow, layer: HiddenLayer) => Float32Array;

const NOTHING = new Int32Array(0);

/** A list for each label position of a row; numbers for those that are stored, `lengths` each. */
export function spreadLabels(
  { row, positions }: LabelledRow,
  values: SpreadNumbers['values'] | undefined,
  lengths: ArrayLike<number>,
): SpreadNumbers {
  const entries = row.inputIds.length - 1;
  return values === undefined
    ? { entries, positions: NOTHING, lengths: NOTHING, values: NOTHING }
    : { entries, positions, lengths, values };
}

const metadataColumns: readonly ParquetColumn<CacheRow>[] = (
  [
    ['task', 'kind of task'],
    ['split', 'split of the data'],
    ['source', 'where the row came from'],
    ['answer', 'the verified answer'],
  ] as const
).map(([name, description]) => textColumn(name, description, ({ row }) => row[name], { optional: true }));

const idColumn = textColumn<CacheRow>('row_id', 'unique name of the row', ({ id }) => id);

function nestedColumns(
  grid: readonly number[],
  layers: readonly HiddenLayer[],
  states: ReadStates,
): readonly ParquetColumn<CacheRow>[] {
  const even = (row: CacheRow, length: number) => new Int32Array(row.positions.length).fill(length);
  const counts = (row: CacheRow) => row.topk?.counts ?? NOTHING;
  return [
    idColumn,
    listColumn('input_ids', 'L token ids', int32, ({ row }) => row.inputIds),
    listColumn('loss_mask', '1 where the token is to be predicted; aligned to input_ids', int8, ({ row }) =>
      Int32Array.from(row.lossMask),
    ),
    ...metadataColumns,
    nestedColumn(
      'topk_ids',
      `the teacher's most probable ids, by descending probability; ${POSITIONS}, empty where nothing is stored`,
      int32,
      (row) => spreadLabels(row, row.topk?.ids, counts(row)),
    ),
    nestedColumn(
      'topk_logprobs',
      `natural logarithms of their probabilities at T = 1 over the whole vocabulary; ${POSITIONS}`,
      float32,
      (row) => spreadLabels(row, row.topk?.logprobs, counts(row)),
    ),
    nestedColumn(
      'log_z',
      `log of the sum over the vocabulary of exp(logprob / T) for T = ${grid.join(', ')}; ${POSITIONS}`,
      float32,
      (row) => spreadLabels(row, row.topk?.logZ, even(row, grid.length)),
    ),
    ...layers.map((layer) =>
      nestedColumn<CacheRow>(
        `hidden_${layer}`,
        `the teacher's hidden state, ${describeHiddenLayer(layer)}; ${POSITIONS}`,
        float32,
        (row) => {
          const values = states(row, layer);
          return spreadLabels(row, values, even(row, values.length / Math.max(1, row.positions.length)));
        },
      ),
    ),
  ];
}

function packedColumns(
  grid: readonly number[],
  layers: readonly HiddenLayer[],
  states: ReadStates,
): readonly ParquetColumn<CacheRow>[] {
  return [
    idColumn,
    binaryColumn('input_ids', 'int32[L]: token ids', ({ row }) => row.inputIds),
    binaryColumn('loss_mask', 'uint8[L]: 1 where the token is to be predicted', ({ row }) => row.lossMask),
    ...metadataColumns,
    binaryColumn('positions', 'int32[P]: label positions, ascending; p predicts token p + 1', (row) => row.positions),
    binaryColumn('topk_counts', 'int32[P]: entries of each position', ({ topk }) => topk?.counts ?? NOTHING),
    binaryColumn(
      'topk_ids',
      'int32[sum of topk_counts]: ids by descending probability within a position',
      ({ topk }) => topk?.ids ?? NOTHING,
    ),
    binaryColumn(
      'topk_logprobs',
      'float32[sum of topk_counts]: natural logarithms of their probabilities at T = 1 over the whole vocabulary',
      ({ topk }) => topk?.logprobs ?? NOTHING,
    ),
    binaryColumn(
      'log_z',
      `float32[P, ${grid.length}]: log of the sum over the vocabulary of exp(logprob / T) for T = ${grid.join(', ')}`,
      ({ topk }) => topk?.logZ ?? NOTHING,
    ),
    ...layers.map((layer) =>
      binaryColumn<CacheRow>(
        `hidden_${layer}`,
        `float32[P, hidden size]: the teacher's hidden state, ${describeHiddenLayer(layer)}`,
        (row) => states(row, layer),
      ),
    ),
  ];
}

/**
 * A row of a cache as what columns read.
 * @throws StillhouseError EXPORT_ROW_TOO_LARGE before anything is made of it
 */
export function toCacheRow(labelled: LabelledRow): CacheRow {
  const { row, topk, hidden } = labelled;
  const numbers = [row.inputIds.length, topk?.ids.length ?? 0, topk?.logZ.length ?? 0];
  for (const { values } of hidden?.values() ?? []) numbers.push(values.length);
  // Four bytes a number and two for its levels.
  refuseLargeColumn(row.id, 6 * Math.max(...numbers));
  return { ...labelled, id: row.id };
}

/** What the footer says of the labels beside the columns' descriptions. */
export function labelMetadata(cache: TeacherCache): Readonly<Record<string, string>> {
  const grid = cache.openLabels.topk === true ? cache.description.labels.topk!.temperatures : [];
  return {
    'stillhouse.temperatures': JSON.stringify(grid),
    'stillhouse.positions': cache.description.positions,
    ...(cache.description.teacher === null
      ? {}
      : { 'stillhouse.teacher': JSON.stringify(printTeacher(cache.description.teacher)) }),
  };
}
