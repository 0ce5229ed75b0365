import type { LabelledRow, TeacherCache } from '@stillhouse/teacher-cache';
import { labelMetadata } from '../export/cache-columns.ts';
import { type ExportResult, requireTopK, shardParts, writeExport } from '../export/export-folder.ts';
import {
  float32,
  int8,
  int32,
  listColumn,
  nestedColumn,
  numberColumn,
  type ParquetColumn,
  type SpreadNumbers,
  textColumn,
} from '../parquet/parquet-columns.ts';
import { makeLabels } from '../training-labels.ts';

type TrlRow = LabelledRow & { readonly id: string; readonly promptLength: number };

/**
 * Writes rows that TRL's `SFTTrainer` takes as they are (`input_ids`, `labels`, `completion_mask`), with the teacher's
 * top-k beside them as TRL's teacher server answers (`get_sequence_logprobs`): lists that begin with the completion.
 * @throws StillhouseError EXPORT_LABELS_MISSING and those of `writeExport`
 */
export async function exportTrl(cache: TeacherCache, outDir: string): Promise<ExportResult> {
  requireTopK(cache, 'a row with teacher logprobs');
  return writeExport({
    cache,
    outDir,
    parts: shardParts(cache, (index) => `${String(index).padStart(5, '0')}.parquet`),
    select: { topk: true },
    columns: COLUMNS,
    metadata: labelMetadata(cache),
    convert: (row) => ({ ...row, id: row.row.id, promptLength: findPromptLength(row.row.lossMask) }),
  });
}

/** Tokens before the first that is to be predicted; all of them if none is. */
function findPromptLength(lossMask: Uint8Array): number {
  const first = lossMask.indexOf(1);
  return first < 0 ? lossMask.length : first;
}

/** Entry t belongs to token promptLength + t, which position promptLength + t - 1 predicts. */
function spreadCompletion(
  { row, positions, promptLength }: TrlRow,
  counts: Int32Array,
  values: SpreadNumbers['values'],
): SpreadNumbers {
  // With labels at all positions those of the prompt come first and are left out.
  const skipped = positions.findIndex((position) => position >= promptLength - 1);
  const from = skipped < 0 ? positions.length : skipped;
  const start = counts.subarray(0, from).reduce((sum, count) => sum + count, 0);
  return {
    entries: row.inputIds.length - promptLength,
    positions: positions.subarray(from).map((position) => position + 1 - promptLength),
    lengths: counts.subarray(from),
    values: values.subarray(start),
  };
}

/** The logprob of the token itself where the teacher's stored ids have it. */
function takeActual({ row, positions, topk }: TrlRow): { counts: Int32Array; values: Float32Array } {
  const counts = new Int32Array(positions.length);
  const values: number[] = [];
  let start = 0;
  for (const [place, position] of positions.entries()) {
    const end = start + topk!.counts[place]!;
    const at = topk!.ids.subarray(start, end).indexOf(row.inputIds[position + 1]!);
    if (at >= 0) {
      counts[place] = 1;
      values.push(topk!.logprobs[start + at]!);
    }
    start = end;
  }
  return { counts, values: Float32Array.from(values) };
}

const ALIGNED = 'entry t belongs to token prompt_length + t and was predicted before it';

const COLUMNS: readonly ParquetColumn<TrlRow>[] = [
  textColumn('row_id', 'unique name of the row', ({ id }) => id),
  listColumn('input_ids', 'L token ids, prompt and completion', int32, ({ row }) => row.inputIds),
  listColumn('labels', 'the token where it is to be predicted, -100 elsewhere', int32, ({ row }) => makeLabels(row)),
  listColumn('completion_mask', '1 where the token is to be predicted', int8, ({ row }) =>
    Int32Array.from(row.lossMask),
  ),
  numberColumn('prompt_length', 'tokens before the first that is to be predicted', ({ promptLength }) => promptLength),
  nestedColumn('logprob_token_ids', `the teacher's most probable ids, descending; ${ALIGNED}`, int32, (row) =>
    spreadCompletion(row, row.topk!.counts, row.topk!.ids),
  ),
  nestedColumn('logprobs', `their log-probabilities at T = 1 over the whole vocabulary; ${ALIGNED}`, float32, (row) =>
    spreadCompletion(row, row.topk!.counts, row.topk!.logprobs),
  ),
  nestedColumn(
    'actual_logprobs',
    `the log-probability of the token itself, empty where it is not among the stored ids; ${ALIGNED}`,
    float32,
    (row) => {
      const { counts, values } = takeActual(row);
      return spreadCompletion(row, counts, values);
    },
  ),
];
