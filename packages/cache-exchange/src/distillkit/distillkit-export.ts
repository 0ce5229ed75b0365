import { StillhouseError } from '@stillhouse/errors';
import type { LabelledRow, TeacherCache } from '@stillhouse/teacher-cache';
import { labelMetadata } from '../export/cache-columns.ts';
import { type ExportResult, requireTopK, shardParts, writeExport } from '../export/export-folder.ts';
import { listColumn, nestedColumn, type ParquetColumn, uint8, uint64 } from '../parquet/parquet-columns.ts';
import { IGNORED, makeLabels } from '../training-labels.ts';
import { type DistillKitConfig, idBits, printDistillKitConfig } from './distillkit-config.ts';
import { createDistillKitPacking, type DistillKitPacking } from './distillkit-packing.ts';

/** An entry at or below this logprob (2e-22) stands for none: DistillKit needs k of them everywhere. */
export const FILLER_LOGPROB = -50;

interface PackedRow {
  readonly id: string;
  readonly inputIds: BigInt64Array;
  readonly labels: BigInt64Array;
  /** L - 1 positions of equal size. */
  readonly logprobs: Uint8Array;
  readonly indices: Uint8Array;
}

/**
 * Writes the top-k labels of a cache as DistillKit 1.0 captures them: `data_0.parquet` and so on, one a shard, and
 * `compression_config.yaml`; FORMATS.md says how to train on it.
 * @param config by default one that keeps every logprob as float32, with the cache's k
 * @throws StillhouseError EXPORT_LABELS_MISSING, EXPORT_TOO_FEW_ENTRIES, EXPORT_ID_TOO_LARGE, DISTILLKIT_CONFIG_INVALID
 *   and those of `writeExport`
 */
export async function exportDistillKit(
  cache: TeacherCache,
  outDir: string,
  config: DistillKitConfig,
): Promise<ExportResult> {
  requireTopK(cache, 'a DistillKit data set');
  refuseLargeK(cache, config);
  const packing = createDistillKitPacking(config);
  const filler = packFiller(config, packing);
  return writeExport({
    cache,
    outDir,
    parts: shardParts(cache, (index) => `data_${index}.parquet`),
    select: { topk: true },
    columns: listColumns(packing),
    metadata: labelMetadata(cache),
    convert: (row) => packRow(row, config, packing, filler),
    texts: [{ name: 'compression_config.yaml', text: printDistillKitConfig(config) }],
  });
}

function listColumns(packing: DistillKitPacking): readonly ParquetColumn<PackedRow>[] {
  const nested = (name: string, description: string, size: number, read: (row: PackedRow) => Uint8Array) =>
    nestedColumn<PackedRow>(name, description, uint8, (row) => {
      const entries = row.inputIds.length - 1;
      return {
        entries,
        positions: Int32Array.from({ length: entries }, (_, i) => i),
        lengths: new Int32Array(entries).fill(size),
        values: read(row),
      };
    });
  const aligned = 'entry p belongs to position p, which predicts token p + 1';
  return [
    listColumn('input_ids', 'L token ids', uint64, ({ inputIds }) => inputIds),
    nested('compressed_logprobs', `packed logprobs; ${aligned}`, packing.logprobBytes, ({ logprobs }) => logprobs),
    nested('bytepacked_indices', `packed token ids; ${aligned}`, packing.indexBytes, ({ indices }) => indices),
    listColumn('labels', 'L ids to predict, -100 where none or where no teacher label is', int64, (row) => row.labels),
  ];
}

const int64 = { name: 'element', type: 'INT64', repetition_type: 'REQUIRED' } as const;

interface Filler {
  readonly logprobs: Uint8Array;
  readonly indices: Uint8Array;
}

/**
 * Something finite must stand where nothing is known; `labels` keeps it out of every loss. As a distribution it has a
 * mass of k, so that an import cannot take it for one.
 */
function packFiller({ k }: DistillKitConfig, packing: DistillKitPacking): Filler {
  const filler = { logprobs: new Uint8Array(packing.logprobBytes), indices: new Uint8Array(packing.indexBytes) };
  const ids = Array.from({ length: k }, (_, id) => id);
  packing.pack(ids, new Float32Array(k), filler.logprobs, filler.indices);
  return filler;
}

function packRow(
  labelled: LabelledRow,
  config: DistillKitConfig,
  packing: DistillKitPacking,
  filler: Filler,
): PackedRow {
  const { row, positions, topk } = labelled;
  const { logprobBytes, indexBytes } = packing;
  const entries = row.inputIds.length - 1;
  const logprobs = new Uint8Array(entries * logprobBytes);
  const indices = new Uint8Array(entries * indexBytes);
  const put = (position: number, ids: ArrayLike<number>, values: ArrayLike<number>) =>
    packing.pack(
      ids,
      values,
      logprobs.subarray(position * logprobBytes, (position + 1) * logprobBytes),
      indices.subarray(position * indexBytes, (position + 1) * indexBytes),
    );
  let place = 0;
  let start = 0;
  for (let position = 0; position < entries; position++) {
    if (positions[place] !== position) {
      logprobs.set(filler.logprobs, position * logprobBytes);
      indices.set(filler.indices, position * indexBytes);
      continue;
    }
    const end = start + topk!.counts[place]!;
    const { ids, values } = takeEntries(topk!.ids.subarray(start, end), topk!.logprobs.subarray(start, end), config);
    if (ids === undefined) throw refuseShort(row.id, position, values, config.k);
    const large = ids.find((id) => id >= 2 ** idBits(config.d));
    if (large !== undefined) throw refuseId(row.id, position, large, config.d);
    put(position, ids, values);
    place++;
    start = end;
  }
  return {
    id: row.id,
    inputIds: BigInt64Array.from(row.inputIds, BigInt),
    labels: BigInt64Array.from(makeDistillKitLabels(labelled), BigInt),
    logprobs,
    indices,
  };
}

type Taken =
  | { readonly ids: Int32Array; readonly values: Float32Array }
  | { readonly ids: undefined; readonly values: number };

/** The first k entries; where there are fewer, others of no weight, if the configuration stores each by itself. */
function takeEntries(ids: Int32Array, logprobs: Float32Array, { k, exactK }: DistillKitConfig): Taken {
  if (ids.length >= k) return { ids: ids.subarray(0, k), values: logprobs.subarray(0, k) };
  if (exactK < k) return { ids: undefined, values: ids.length };
  const known = new Set(ids);
  const filled = new Int32Array(k);
  filled.set(ids);
  const values = new Float32Array(k).fill(FILLER_LOGPROB);
  values.set(logprobs);
  for (let id = 0, at = ids.length; at < k; id++) if (!known.has(id)) filled[at++] = id;
  // A kept id may be less probable than the filler, and entries descend.
  const order = Array.from({ length: k }, (_, i) => i).sort((a, b) => values[b]! - values[a]!);
  return { ids: Int32Array.from(order, (i) => filled[i]!), values: Float32Array.from(order, (i) => values[i]!) };
}

/**
 * DistillKit masks the loss at position p by `labels[p]`, which is the token before the one that p predicts. So a label
 * stays only where the teacher's label of its own position is stored too: no loss ever reads what is not there.
 */
function makeDistillKitLabels(labelled: LabelledRow): Int32Array {
  const labels = makeLabels(labelled.row);
  const stored = new Set(labelled.positions);
  const last = labels.length - 1;
  return labels.map((label, position) => (position === last || stored.has(position) ? label : IGNORED));
}

function refuseLargeK(cache: TeacherCache, { k }: DistillKitConfig): void {
  const { vocabSize } = cache.description.teacher!;
  if (k <= vocabSize) return;
  throw new StillhouseError({
    code: 'DISTILLKIT_CONFIG_INVALID',
    where: 'k',
    problem: 'the teacher has fewer ids than that',
    expected: `at most ${vocabSize}`,
    got: String(k),
  });
}

const refuseShort = (row: string, position: number, count: number, k: number) =>
  new StillhouseError({
    code: 'EXPORT_TOO_FEW_ENTRIES',
    where: `row ${row}, position ${position}`,
    problem: 'DistillKit fits a curve through k logprobs, and the cache has fewer here',
    expected: `${k} entries`,
    got: String(count),
    remedy: 'Use --compression exact, or a configuration with a smaller k',
  });

const refuseId = (row: string, position: number, id: number, d: number) =>
  new StillhouseError({
    code: 'EXPORT_ID_TOO_LARGE',
    where: `row ${row}, position ${position}`,
    problem: `id ${id} does not fit into the bits that d = ${d} gives it`,
    expected: `ids below ${2 ** idBits(d)}`,
    got: String(id),
    remedy: 'Set d to the vocabulary size of the teacher',
  });
