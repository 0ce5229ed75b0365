import { StillhouseError } from '@stillhouse/errors';
import type { LabelledRow, TeacherCache } from '@stillhouse/teacher-cache';
import { labelMetadata } from '../export/cache-columns.ts';
import { type ExportResult, requireTopK, shardParts, writeExport } from '../export/export-folder.ts';
import {
  float32,
  int8,
  int32,
  listColumn,
  nestedColumn,
  type ParquetColumn,
  type SpreadNumbers,
} from '../parquet/parquet-columns.ts';
import { makeLabels } from '../training-labels.ts';

/**
 * Where a position's label stands: at the position itself, as axolotl's trainer reads it from 0.10 on, or at the token
 * it predicts, as trainers before that did, which shifted it.
 */
export type AxolotlAlignment = 'position' | 'token';

export interface AxolotlOptions {
  readonly alignment?: AxolotlAlignment;
  /** The temperature to train at, `kd_temperature`: rows hold logprobs at it. Default 1. */
  readonly temperature?: number;
  /** Over the stored ids, as axolotl prepares rows (`topk`, default), or over the whole vocabulary (`none`). */
  readonly normalise?: 'topk' | 'none';
}

/** A row and its logprobs as the trainer is to see them. */
type PreparedRow = LabelledRow & { readonly id: string; readonly logprobs: Float32Array };

/**
 * Writes the top-k labels of a cache as rows that axolotl's KD plugin has prepared: `input_ids`, `attention_mask`,
 * `labels`, `target_token_ids`, `target_logprobs`, `target_mask`. A position without a label has empty lists.
 * @throws StillhouseError EXPORT_LABELS_MISSING, EXPORT_TEMPERATURE_UNKNOWN and those of `writeExport`
 */
export async function exportAxolotl(
  cache: TeacherCache,
  outDir: string,
  { alignment = 'position', temperature = 1, normalise = 'topk' }: AxolotlOptions = {},
): Promise<ExportResult> {
  requireTopK(cache, 'a row of axolotl');
  const { temperatures } = cache.description.labels.topk!;
  const grid = temperatures.indexOf(temperature);
  if (normalise === 'none' && grid < 0) {
    throw new StillhouseError({
      code: 'EXPORT_TEMPERATURE_UNKNOWN',
      where: cache.folder,
      problem: 'the cache has no log_z at that temperature, so logprobs over the whole vocabulary are unknown',
      expected: `one of ${temperatures.join(', ') || 'none'}`,
      got: String(temperature),
      remedy: 'Normalise over the stored ids instead (--normalise topk)',
    });
  }
  return writeExport({
    cache,
    outDir,
    parts: shardParts(cache, (index) => `${String(index).padStart(5, '0')}.parquet`),
    select: { topk: true },
    columns: listColumns(alignment === 'token' ? 1 : 0),
    metadata: {
      ...labelMetadata(cache),
      'stillhouse.alignment': alignment,
      'stillhouse.kd_temperature': String(temperature),
      'stillhouse.normalised_over': normalise === 'topk' ? 'stored ids' : 'vocabulary',
    },
    convert: (row) => {
      const logprobs =
        normalise === 'topk' ? renormalise(row, temperature) : scale(row, temperature, grid, temperatures.length);
      return { ...row, id: row.row.id, logprobs };
    },
  });
}

function listColumns(shift: 0 | 1): readonly ParquetColumn<PreparedRow>[] {
  const aligned =
    shift === 0 ? 'entry p belongs to position p, which predicts token p + 1' : 'entry i predicts token i';
  const spread = ({ row, positions, topk }: PreparedRow, values: SpreadNumbers['values']): SpreadNumbers => ({
    entries: row.inputIds.length,
    positions: positions.map((position) => position + shift),
    lengths: topk!.counts,
    values,
  });
  return [
    listColumn('input_ids', 'L token ids', int32, ({ row }) => row.inputIds),
    listColumn('attention_mask', '1 for each token', int8, ({ row }) => new Int32Array(row.inputIds.length).fill(1)),
    listColumn('labels', 'the token where it is to be predicted, -100 elsewhere', int32, ({ row }) => makeLabels(row)),
    nestedColumn('target_token_ids', `the teacher's most probable ids; ${aligned}`, int32, (row) =>
      spread(row, row.topk!.ids),
    ),
    nestedColumn('target_logprobs', `their log-probabilities; ${aligned}`, float32, (row) => spread(row, row.logprobs)),
    nestedColumn('target_mask', `1 for each of them; ${aligned}`, int8, (row) =>
      spread(row, new Int32Array(row.topk!.ids.length).fill(1)),
    ),
  ];
}

/** Log-probabilities at T over the stored ids alone. */
function renormalise({ topk }: LabelledRow, temperature: number): Float32Array {
  const { counts, logprobs } = topk!;
  const result = new Float32Array(logprobs.length);
  let start = 0;
  for (const count of counts) {
    const most = logprobs[start]! / temperature;
    let sum = 0;
    for (let i = start; i < start + count; i++) sum += Math.exp(logprobs[i]! / temperature - most);
    const norm = most + Math.log(sum);
    for (let i = start; i < start + count; i++) result[i] = logprobs[i]! / temperature - norm;
    start += count;
  }
  return result;
}

/** Log-probabilities at T over the whole vocabulary. */
function scale({ topk }: LabelledRow, temperature: number, grid: number, gridSize: number): Float32Array {
  const { counts, logprobs, logZ } = topk!;
  if (temperature === 1) return logprobs;
  const result = new Float32Array(logprobs.length);
  let start = 0;
  for (const [place, count] of counts.entries()) {
    const norm = logZ[place * gridSize + grid]!;
    for (let i = start; i < start + count; i++) result[i] = logprobs[i]! / temperature - norm;
    start += count;
  }
  return result;
}
