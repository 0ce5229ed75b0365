import { join } from 'node:path';
import { decodeRow, openHiddenDecoder, openSampledDecoder, openTopKDecoder } from '../codecs/arrow-decoding.ts';
import { type ArrowBatch, type ArrowFile, openArrowFile } from '../codecs/arrow-file-reader.ts';
import { readScale } from '../codecs/scale-file.ts';
import { loadZstd } from '../codecs/zstd.ts';
import { shardSchema } from '../format/arrow-schemas.ts';
import { contentGroup, type ShardContent } from '../format/description.ts';
import type { HiddenLayer } from '../format/hidden-layer.ts';
import { labelPositions, targetsOf } from '../format/labelled-row.ts';
import type { CacheManifest, ListedShard } from '../format/manifest.ts';
import { checkSampled, checkTopK } from './distribution-checks.ts';
import { explain, type Findings } from './findings.ts';
import { checkHidden, checkRow } from './row-checks.ts';

/** A cache that is being checked. */
export interface CheckedCache {
  readonly folder: string;
  readonly manifest: CacheManifest;
  /** The paths of files with the right content. */
  readonly sound: ReadonlySet<string>;
  /** The file that has a row, by the row's id. */
  readonly rowIds: Map<string, string>;
  readonly findings: Findings;
}

/** A row that was checked: what its labels are held against. */
interface CheckedRow {
  readonly id: string;
  /** [P] */
  readonly targets: Int32Array;
}

/** Checks every row and label of a shard whose rows are sound. */
export async function checkShard(
  cache: CheckedCache,
  shard: ListedShard,
): Promise<{ readonly rows: number; readonly positions: number }> {
  const rows = await checkRows(cache, shard);
  await checkDistributions(cache, shard, rows);
  for (const layer of cache.manifest.description.labels.hidden?.layers ?? []) {
    await checkStates(cache, shard, rows, layer);
  }
  return { rows: rows.length, positions: countPositions(rows) };
}

const countPositions = (rows: readonly CheckedRow[]) => rows.reduce((sum, { targets }) => sum + targets.length, 0);

async function checkRows(cache: CheckedCache, shard: ListedShard): Promise<readonly CheckedRow[]> {
  const { findings, rowIds } = cache;
  const { description } = cache.manifest;
  const { path } = shard.files.rows;
  const rows: CheckedRow[] = [];
  let tokens = 0;
  await visitRows(cache, shard, 'rows', (batch, place) => {
    const row = decodeRow(batch, place);
    for (const problem of checkRow(row, description)) findings.add(path, `row ${row.id}: ${problem}`);
    const former = rowIds.get(row.id);
    if (former !== undefined) findings.add(path, `row id ${row.id} is in ${former} too`);
    rowIds.set(row.id, path);
    tokens += row.inputIds.length;
    rows.push({ id: row.id, targets: targetsOf(row, labelPositions(row.lossMask, description.positions)) });
  });
  const positions = countPositions(rows);
  if (tokens !== shard.tokenCount || positions !== shard.positionCount) {
    const said = `${shard.tokenCount} tokens and ${shard.positionCount} positions`;
    findings.add(path, `there are ${tokens} tokens and ${positions} positions, the manifest says ${said}`);
  }
  return rows;
}

async function checkDistributions(cache: CheckedCache, shard: ListedShard, rows: readonly CheckedRow[]): Promise<void> {
  const { description } = cache.manifest;
  const { topk, sampled = null } = description.labels;
  const zstd = await loadZstd();
  const check = openLabelCheck(cache, shard, rows);
  if (topk !== null) {
    const decode = openTopKDecoder(description, zstd);
    await check('topk', (batch, place, targets) => {
      const [id, labels] = decode(batch, place, targets.length);
      return [id, checkTopK(labels, targets, description)];
    });
  }
  if (sampled !== null) {
    const decode = openSampledDecoder(description, zstd);
    await check('sampled', (batch, place, targets) => {
      const [id, labels] = decode(batch, place, targets.length);
      return [id, checkSampled(labels, targets.length, description)];
    });
  }
}

async function checkStates(
  cache: CheckedCache,
  shard: ListedShard,
  rows: readonly CheckedRow[],
  layer: HiddenLayer,
): Promise<void> {
  const { description, scales } = cache.manifest;
  const shape = { layer, dtype: description.labels.hidden!.dtype, width: description.teacher!.hiddenSize! };
  const listed = scales.find((one) => one.layer === layer);
  // Without its scale a layer cannot be decoded; the scale is among the findings already.
  if (listed !== undefined && !cache.sound.has(listed.path)) return;
  const scale = listed && (await readScale(join(cache.folder, listed.path), description).catch(() => undefined));
  if (listed !== undefined && scale === undefined) return;
  const decode = openHiddenDecoder(shape, scale);
  await openLabelCheck(
    cache,
    shard,
    rows,
  )(layer, (batch, place, targets) => {
    const [id, labels] = decode(batch, place, targets.length);
    return [id, checkHidden(labels, targets.length, description)];
  });
}

/** Labels at a place of a batch. @returns the id of their row and what is wrong with them */
type LabelCheck = (batch: ArrowBatch, place: number, targets: Int32Array) => readonly [string, Iterable<string>];

/** Checks the labels of a group, each against the row that they should be of. */
function openLabelCheck(cache: CheckedCache, shard: ListedShard, rows: readonly CheckedRow[]) {
  return (content: ShardContent, check: LabelCheck): Promise<void> => {
    const { path } = shard.files[contentGroup(content)]!;
    return visitRows(cache, shard, content, (batch, place, index) => {
      const row = rows[index];
      const [id, problems] = check(batch, place, row?.targets ?? new Int32Array(0));
      if (row?.id !== id) {
        cache.findings.add(path, `row ${index} is ${id}, in the rows it is ${row?.id ?? 'missing'}`);
        return;
      }
      for (const problem of problems) cache.findings.add(path, `row ${id}: ${problem}`);
    });
  };
}

/** Calls `visit` for every Arrow row of a group's file, if the file is sound; damage becomes a finding. */
async function visitRows(
  { folder, manifest, sound, findings }: CheckedCache,
  { files, rowCount }: ListedShard,
  content: ShardContent,
  visit: (batch: ArrowBatch, place: number, row: number) => void,
): Promise<void> {
  const { path } = files[contentGroup(content)]!;
  if (!sound.has(path)) return;
  let arrow: ArrowFile | undefined;
  try {
    arrow = await openArrowFile(join(folder, path), shardSchema(manifest.description, content));
    const found = arrow.batchStarts.at(-1)!;
    if (found !== rowCount) findings.add(path, `there are ${found} rows, the manifest says ${rowCount}`);
    for (let i = 0; i + 1 < arrow.batchStarts.length; i++) {
      const batch = await arrow.readBatch(i);
      for (let place = 0; place < batch.rowCount; place++) visit(batch, place, batch.firstRow + place);
    }
  } catch (error) {
    findings.add(path, explain(error));
  } finally {
    await arrow?.close();
  }
}
