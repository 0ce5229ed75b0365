import { createHash } from 'node:crypto';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { explainWriteFailure, writeFileAtomically } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { encodeShard } from './arrow-encoding.ts';
import { writeArrowFile } from './arrow-file-writer.ts';
import { type BuildState, loadBuildState, loadRowIds, refuseForeignFolder } from './build-state.ts';
import { lockForBuilding } from './builder-lock.ts';
import {
  type CacheDescription,
  diffDescriptions,
  type HiddenLayer,
  hiddenGroup,
  normaliseDescription,
  shardGroups,
} from './description.ts';
import type { LabelledRow } from './labelled-row.ts';
import {
  type CacheManifest,
  channelRmsPath,
  MANIFEST_NAME,
  OUTPUT_MATRIX_PATH,
  type ShardFiles,
  serialiseManifest,
  shardPath,
  tokenizerPath,
} from './manifest.ts';
import { isPlainFileName } from './manifest-parser.ts';
import { encodeChannelRms, encodeOutputMatrix, type OutputMatrixSource, readChannelRms } from './output-matrix.ts';
import { checkLabelledRow } from './row-checks.ts';

/**
 * Writes a cache, shard after shard; whatever it has finished survives a kill, and the same calls made again end in
 * the same bytes. Arrays handed in must not change before the promise settles. One call at a time.
 */
export interface CacheWriter {
  readonly description: CacheDescription;
  readonly totalRows: number;
  readonly shardCount: number;
  /** Shards 0 to n-1 are finished; the next to write is n. */
  readonly completedShards: number;
  /** Whether the cache was finished before or by `finish`. */
  readonly isComplete: boolean;
  readonly hasTokenizerFiles: boolean;
  readonly hasOutputMatrix: boolean;
  /** The row numbers of a shard: [first, end). */
  shardRange(index: number): readonly [number, number];
  /** @throws StillhouseError CACHE_CONFIG_MISMATCH if other files were put before */
  putTokenizerFiles(files: readonly { readonly name: string; readonly bytes: Uint8Array }[]): Promise<void>;
  /** Does nothing if the matrix is there already. @throws StillhouseError CACHE_MATRIX_INVALID */
  putOutputMatrix(source: OutputMatrixSource): Promise<void>;
  /** Fixes the scales of a layer's int8 states for all shards, before the first. [hiddenSize], each > 0. */
  setChannelRms(layer: HiddenLayer, rms: Float32Array): Promise<void>;
  /** What was set, now or by the build that is resumed. */
  channelRms(layer: HiddenLayer): Float32Array | undefined;
  /** @throws StillhouseError CACHE_ROW_INVALID, CACHE_ROW_TOO_LARGE, CACHE_SHARD_UNEXPECTED, DISK_FULL */
  writeShard(index: number, rows: readonly LabelledRow[]): Promise<void>;
  /** Marks the cache complete. @throws StillhouseError CACHE_UNFINISHED */
  finish(): Promise<void>;
  /** Gives the folder back to other builders; what is finished stays. */
  close(): Promise<void>;
}

/**
 * Starts a cache in `folder`, or resumes the one that is there if it has the same description.
 * @param totalRows how many rows the cache will have
 * @throws StillhouseError CACHE_CONFIG_MISMATCH, CACHE_IN_USE, CACHE_FOLDER_NOT_EMPTY, CACHE_DESCRIPTION_INVALID
 */
export async function openCacheWriter(
  folder: string,
  description: CacheDescription,
  { totalRows }: { readonly totalRows: number },
): Promise<CacheWriter> {
  const asked = normaliseDescription(description);
  if (!Number.isSafeInteger(totalRows) || totalRows < 1) {
    throw new StillhouseError({
      code: 'CACHE_DESCRIPTION_INVALID',
      where: folder,
      problem: 'a cache needs rows',
      expected: 'at least 1',
      got: String(totalRows),
    });
  }
  await refuseForeignFolder(folder);
  await mkdir(folder, { recursive: true }).catch((cause: unknown) => {
    throw explainWriteFailure(folder, cause);
  });
  const unlock = await lockForBuilding(folder);
  try {
    const state = await loadBuildState(folder, asked, totalRows);
    return await makeWriter(folder, state, unlock);
  } catch (error) {
    await unlock();
    throw error;
  }
}

async function makeWriter(folder: string, initial: BuildState, unlock: () => Promise<void>): Promise<CacheWriter> {
  let state = initial;
  let isOpen = true;
  const { description, rows } = initial;
  const totalRows = rows.planned;
  const shardCount = Math.ceil(totalRows / description.rowsPerShard);
  const rowIds = await loadRowIds(folder, initial);
  const scales = new Map<HiddenLayer, Float32Array>();
  const width = description.teacher?.hiddenSize ?? 0;
  for (const { layer, path } of initial.channelRms) scales.set(layer, await readChannelRms(join(folder, path), width));

  const commit = async (change: Partial<BuildState>) => {
    if (!isOpen) throw new Error('the cache writer is closed');
    const next = { ...state, ...change };
    await writeFileAtomically(join(folder, MANIFEST_NAME), serialiseManifest(next));
    state = next;
  };
  const put = async (path: string, batches: Parameters<typeof writeArrowFile>[1]) => {
    if (!isOpen) throw new Error('the cache writer is closed');
    return { path, ...order(await writeArrowFile(join(folder, path), batches)) };
  };
  const shardRange = (index: number) =>
    [index * description.rowsPerShard, Math.min(totalRows, (index + 1) * description.rowsPerShard)] as const;

  return {
    description,
    totalRows,
    shardCount,
    get completedShards() {
      return state.shards.length;
    },
    get isComplete() {
      return state.complete;
    },
    get hasTokenizerFiles() {
      return state.tokenizer.length > 0;
    },
    get hasOutputMatrix() {
      return state.outputMatrix !== null;
    },
    shardRange,
    putTokenizerFiles: async (files) => {
      const sorted = [...files].sort((a, b) => (a.name < b.name ? -1 : 1));
      const tokenizer = sorted.map(({ name, bytes }) => {
        if (!isPlainFileName(name) || description.tokenizer === null) refuseTokenizerFile(folder, name);
        return { path: tokenizerPath(name), sizeBytes: bytes.length, sha256: sha256(bytes) };
      });
      if (state.tokenizer.length > 0) {
        const differences = diffDescriptions(digests(state.tokenizer), digests(tokenizer));
        if (differences.length === 0) return;
        throw new StillhouseError({
          code: 'CACHE_CONFIG_MISMATCH',
          where: folder,
          problem: 'the cache has other tokenizer files',
          got: differences.map(({ key }) => key).join(', '),
          remedy: 'Run the command that began it, or choose another folder',
        });
      }
      for (const { name, bytes } of sorted) await writeFileAtomically(join(folder, tokenizerPath(name)), bytes);
      await commit({ tokenizer });
    },
    putOutputMatrix: async (source) => {
      if (state.outputMatrix !== null) return;
      const { teacher, labels } = description;
      if (!labels.head || source.rows !== teacher?.vocabSize || source.columns !== teacher.hiddenSize) {
        throw new StillhouseError({
          code: 'CACHE_MATRIX_INVALID',
          where: 'output matrix',
          problem: 'it is not the one the description has',
          expected: labels.head ? `${teacher?.vocabSize} x ${teacher?.hiddenSize}` : 'none',
          got: `${source.rows} x ${source.columns}`,
        });
      }
      const file = await put(OUTPUT_MATRIX_PATH, encodeOutputMatrix(source));
      await commit({ outputMatrix: { ...file, dtype: source.dtype, rows: source.rows, columns: source.columns } });
    },
    setChannelRms: async (layer, rms) => {
      const known = scales.get(layer);
      if (known !== undefined && known.length === rms.length && known.every((value, i) => value === rms[i])) return;
      const isWanted = description.labels.hidden?.dtype === 'int8' && description.labels.hidden.layers.includes(layer);
      const isUsable = rms.length === width && rms.every((value) => value > 0 && value < Infinity);
      if (!isWanted || !isUsable || known !== undefined || state.shards.length > 0) {
        throw new StillhouseError({
          code: 'CACHE_SCALE_INVALID',
          where: `channel RMS of ${hiddenGroup(layer)}`,
          problem:
            isWanted && isUsable ? 'it is fixed already and shards may depend on it' : 'the cache has no place for it',
          expected: isWanted ? `${width} positive finite numbers, once, before the first shard` : 'no such scale',
        });
      }
      const file = await put(channelRmsPath(layer), encodeChannelRms(rms));
      await commit({ channelRms: [...state.channelRms, { layer, ...file }] });
      scales.set(layer, rms.slice());
    },
    channelRms: (layer) => scales.get(layer),
    writeShard: async (index, labelled) => {
      const [firstRow, end] = shardRange(index);
      if (index !== state.shards.length || labelled.length !== end - firstRow) {
        throw new StillhouseError({
          code: 'CACHE_SHARD_UNEXPECTED',
          where: `shard ${index}`,
          problem: 'shards are written in order, each with its rows',
          expected: state.complete ? 'none, the cache is complete' : `shard ${state.shards.length} of ${shardCount}`,
          got: `${labelled.length} rows for shard ${index}`,
        });
      }
      refuseBadRows(labelled, description, rowIds);
      refuseMissingScale(description, scales);
      const files: Record<string, Awaited<ReturnType<typeof put>>> = {};
      for (const group of shardGroups(description)) {
        const layer = description.labels.hidden?.layers.find((one) => hiddenGroup(one) === group);
        const content = layer ?? (group as 'rows' | 'topk');
        files[group] = await put(shardPath(index, group), encodeShard(labelled, content, description));
      }
      await commit({
        rows: { planned: totalRows, stored: end },
        shards: [
          ...state.shards,
          {
            firstRow,
            rowCount: labelled.length,
            tokenCount: labelled.reduce((sum, { row }) => sum + row.inputIds.length, 0),
            positionCount: labelled.reduce((sum, { positions }) => sum + positions.length, 0),
            files: files as unknown as ShardFiles,
          },
        ],
      });
      for (const { row } of labelled) rowIds.add(row.id);
    },
    finish: async () => {
      if (state.complete) return;
      const missing = [
        ...(state.shards.length < shardCount ? [`${shardCount - state.shards.length} shards`] : []),
        ...(description.tokenizer !== null && state.tokenizer.length === 0 ? ['the tokenizer files'] : []),
        ...(description.labels.head && state.outputMatrix === null ? ['the output matrix'] : []),
      ];
      if (missing.length > 0) {
        throw new StillhouseError({
          code: 'CACHE_UNFINISHED',
          where: folder,
          problem: `the cache cannot be called complete without ${missing.join(', ')}`,
        });
      }
      await commit({ complete: true });
    },
    close: async () => {
      if (!isOpen) return;
      isOpen = false;
      await unlock();
    },
  };
}

const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');
const order = ({ sizeBytes, sha256 }: { sizeBytes: number; sha256: string }) => ({ sizeBytes, sha256 });
const digests = (files: CacheManifest['tokenizer']) =>
  Object.fromEntries(files.map((file) => [file.path, file.sha256]));

function refuseTokenizerFile(folder: string, name: string): never {
  throw new StillhouseError({
    code: 'CACHE_DESCRIPTION_INVALID',
    where: `${folder}, tokenizer file ${JSON.stringify(name)}`,
    problem: 'it cannot be kept in the cache',
    expected: 'a plain file name, and a tokenizer in the description',
  });
}

function refuseBadRows(
  labelled: readonly LabelledRow[],
  description: CacheDescription,
  known: ReadonlySet<string>,
): void {
  const ids = new Set<string>();
  for (const row of labelled) {
    const { id } = row.row;
    const [finding] = checkLabelledRow(row, description);
    const problem =
      known.has(id) || ids.has(id) ? 'another row has the same id' : finding && `${finding.group}: ${finding.problem}`;
    if (problem !== undefined) {
      throw new StillhouseError({ code: 'CACHE_ROW_INVALID', where: `row ${JSON.stringify(id)}`, problem });
    }
    ids.add(id);
  }
}

function refuseMissingScale(description: CacheDescription, scales: ReadonlyMap<HiddenLayer, Float32Array>): void {
  const { hidden } = description.labels;
  for (const layer of hidden?.dtype === 'int8' ? hidden.layers : []) {
    if (scales.has(layer)) continue;
    throw new StillhouseError({
      code: 'CACHE_SCALE_INVALID',
      where: `channel RMS of ${hiddenGroup(layer)}`,
      problem: 'it must be set before the first shard',
    });
  }
}
