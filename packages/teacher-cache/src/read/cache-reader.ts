import { StillhouseError } from '@stillhouse/errors';
import {
  decodeRow,
  decodeText,
  type HiddenDecoder,
  type LabelDecoder,
  openHiddenDecoder,
  openSampledDecoder,
  openTopKDecoder,
} from '../codecs/arrow-decoding.ts';
import type { ArrowBatch } from '../codecs/arrow-file-reader.ts';
import type { HiddenScale } from '../codecs/hidden-scale.ts';
import { type MatrixRows, streamOutputMatrix, widenMatrixRows } from '../codecs/output-matrix.ts';
import { readScale } from '../codecs/scale-file.ts';
import { loadZstd } from '../codecs/zstd.ts';
import {
  type CacheDescription,
  type CacheGroup,
  contentGroup,
  hiddenGroup,
  type ShardContent,
} from '../format/description.ts';
import type { HiddenLayer } from '../format/hidden-layer.ts';
import {
  type HiddenLabels,
  type LabelledRow,
  type LabelSelection,
  labelPositions,
  type SampledLabels,
  type TopKLabels,
} from '../format/labelled-row.ts';
import { type CacheManifest, type ListedFile, type ListedMatrix, listFiles } from '../format/manifest.ts';
import { readManifest } from '../format/manifest-parser.ts';
import { findRange } from '../format/shard-layout.ts';
import { type CacheFiles, openFolderFiles } from './cache-files.ts';
import { listOmittedGroups, refuseOmitted } from './pulled-state.ts';
import { openShardFiles, type ShardFileReader } from './shard-files.ts';

export interface OpenCacheOptions {
  /** Accept a cache that is still being built, as far as it goes. Default false. */
  readonly allowIncomplete?: boolean;
  /**
   * The groups whose files must be here; by default all that the manifest lists but those that `cache pull` left out.
   * `rows` is always needed.
   */
  readonly groups?: readonly CacheGroup[];
  /**
   * `first-touch` (default) hashes each file before anything is read from it, unless `cache pull` has and size and times
   * are as they were then; when it is opened again later, it is hashed again if size or times have changed.
   */
  readonly verifyOnRead?: 'first-touch' | 'never';
  /** How much of the batches that were read last stays in memory. Default: all, where rows and labels take up to 256 MiB; else 64 MiB. */
  readonly batchCacheBytes?: number;
}

/** So many rows are on their way while one is worked on: enough that the disk is never waited for twice. */
const ROWS_AHEAD = 3;

const countPositions = ({ counts }: TopKLabels | SampledLabels) => counts.length;

/** A cache opened for reading. Calls may overlap. */
export interface TeacherCache {
  /** Where it is: the folder, or the location that `openCacheFiles` was given. */
  readonly folder: string;
  readonly manifest: CacheManifest;
  readonly description: CacheDescription;
  /** sha256 over everything the cache says and holds. */
  readonly digest: string;
  readonly rowCount: number;
  readonly rowIds: readonly string[];
  /** The labels that a row brings when none are asked for: all that the cache has in the groups it was opened with. */
  readonly openLabels: LabelSelection;
  /** Whether the output matrix is there, in the groups it was opened with. */
  readonly hasOutputMatrix: boolean;
  /** Folder with the teacher's tokenizer files; null if the cache has none. */
  readonly tokenizerFolder: string | null;
  /** The place of a row among all. @throws StillhouseError CACHE_ROW_UNKNOWN */
  indexOf(id: string): number;
  /**
   * One row; its arrays are views on shared memory.
   * @throws StillhouseError CACHE_ROW_UNKNOWN, CACHE_GROUP_ABSENT, CACHE_FILE_DAMAGED, CACHE_FILE_UNREADABLE
   */
  readRow(index: number, select?: LabelSelection): Promise<LabelledRow>;
  /** Rows by their numbers, in the given order or all in theirs; the next few are read while one is worked on. */
  rows(order?: Iterable<number>, select?: LabelSelection): AsyncGenerator<LabelledRow>;
  /** What a layer's states are decoded with: the RMS of each channel, [hiddenSize], or a codebook; undefined for others. */
  hiddenScale(layer: HiddenLayer): Promise<HiddenScale | undefined>;
  /** The teacher's output matrix, some rows at a time, as it is stored. @throws StillhouseError CACHE_GROUP_ABSENT */
  streamOutputMatrix(): AsyncGenerator<MatrixRows>;
  /** The output matrix as float32, [vocabSize, hiddenSize]. */
  readOutputMatrix(): Promise<Float32Array<ArrayBuffer>>;
  close(): Promise<void>;
}

/**
 * Opens a cache: its manifest is checked, every needed file must be there with its size, ids are read.
 * @throws StillhouseError CACHE_NOT_FOUND, CACHE_INCOMPLETE, CACHE_MANIFEST_INVALID, CACHE_VERSION_TOO_NEW,
 *   CACHE_FILE_MISSING, CACHE_FILE_DAMAGED, CACHE_FILE_UNREADABLE
 */
export async function openCache(folder: string, options: OpenCacheOptions = {}): Promise<TeacherCache> {
  const manifest = await readManifest(folder);
  const omitted = await listOmittedGroups(folder, manifest);
  const asked = options.groups?.find((group) => omitted.has(group));
  if (asked !== undefined) refuseOmitted(folder, asked);
  const groups = options.groups ?? [...listFiles(manifest)].map(({ group }) => group).filter((g) => !omitted.has(g));
  return openCacheFiles(await openFolderFiles(folder, options), manifest, { ...options, groups });
}

/**
 * Opens a cache whose files come from elsewhere; `files` is closed with it.
 * @throws StillhouseError as {@link openCache}
 */
export async function openCacheFiles(
  files: CacheFiles,
  manifest: CacheManifest,
  options: Omit<OpenCacheOptions, 'verifyOnRead'> = {},
): Promise<TeacherCache> {
  const shardFiles = openShardFiles(files, manifest, options);
  try {
    if (!manifest.complete && options.allowIncomplete !== true) {
      throw new StillhouseError({
        code: 'CACHE_INCOMPLETE',
        where: files.where,
        problem: `only ${manifest.rows.stored} of ${manifest.rows.planned} rows are there`,
        remedy: 'Run the same `stillhouse cache build` command again, it goes on where it stopped',
      });
    }
    const groups = new Set<CacheGroup>(options.groups ?? [...listFiles(manifest)].map(({ group }) => group));
    groups.add('rows');
    for (const { group, file } of listFiles(manifest)) {
      if (groups.has(group)) await files.check(file);
    }
    return await makeCache(files, manifest, groups, shardFiles);
  } catch (error) {
    await shardFiles.close();
    await files.close();
    throw error;
  }
}

async function makeCache(
  files: CacheFiles,
  manifest: CacheManifest,
  groups: ReadonlySet<CacheGroup>,
  shardFiles: ShardFileReader,
): Promise<TeacherCache> {
  const folder = files.where;
  const { description, shards } = manifest;
  const rowIds: string[] = [];
  for (const { files: listed, rowCount } of shards) {
    await shardFiles.withFile(listed.rows, 'rows', async (file) => {
      const found = file.batchStarts.at(-1);
      if (found !== rowCount) {
        throw new StillhouseError({
          code: 'CACHE_FILE_UNREADABLE',
          where: `${folder}/${listed.rows.path}`,
          problem: 'the file has another number of rows than the manifest says',
          expected: String(rowCount),
          got: String(found),
        });
      }
      for (let i = 0; i + 1 < file.batchStarts.length; i++) {
        const batch = await file.readBatch(i);
        try {
          for (let row = 0; row < batch.rowCount; row++) rowIds.push(decodeText(batch.columns[0]!, row)!);
        } catch (cause) {
          throw new StillhouseError({
            code: 'CACHE_FILE_UNREADABLE',
            where: `${folder}/${listed.rows.path}`,
            problem: `the row ids cannot be read (${(cause as Error).message})`,
            remedy: 'Run `stillhouse cache verify` on the cache',
            cause,
          });
        }
      }
    });
  }
  const places = new Map(rowIds.map((id, index) => [id, index]));
  const { topk, sampled = null, hidden } = description.labels;
  const zstd = await loadZstd();
  const decodeTopK = topk === null ? undefined : openTopKDecoder(description, zstd);
  const decodeSampled = sampled === null ? undefined : openSampledDecoder(description, zstd);
  const everything: LabelSelection = {
    topk: topk !== null && groups.has('topk'),
    sampled: sampled !== null && groups.has('sampled'),
    hidden: (hidden?.layers ?? []).filter((layer) => groups.has(hiddenGroup(layer))),
  };

  const requireGroup = (group: CacheGroup, exists: boolean) => {
    if (exists && groups.has(group)) return;
    throw new StillhouseError({
      code: 'CACHE_GROUP_ABSENT',
      where: folder,
      problem: `${group} is not in this cache${exists ? ' as it was opened' : ''}`,
      got: `the groups ${[...groups].sort().join(', ')}`,
      remedy: exists
        ? 'Bring that group with `stillhouse cache pull --groups`, or choose labels that do without'
        : 'Build a cache with that label, or train on another',
    });
  };
  const unknownRow = (name: string) =>
    new StillhouseError({ code: 'CACHE_ROW_UNKNOWN', where: folder, problem: `there is no row ${name}` });

  const readRow = async (index: number, select: LabelSelection = everything): Promise<LabelledRow> => {
    const shard = findRange(shards, index);
    if (!Number.isInteger(index) || index < 0 || index >= rowIds.length || shard === undefined) {
      throw unknownRow(`number ${index}, they go from 0 to ${rowIds.length - 1}`);
    }
    if (select.topk === true) requireGroup('topk', topk !== null);
    if (select.sampled === true) requireGroup('sampled', sampled !== null);
    for (const layer of select.hidden ?? []) {
      requireGroup(hiddenGroup(layer), hidden?.layers.includes(layer) ?? false);
    }
    const place = index - shard.firstRow;
    const layers = select.hidden ?? [];
    const contents: ShardContent[] = ['rows', ...layers];
    if (select.topk === true) contents.push('topk');
    if (select.sampled === true) contents.push('sampled');
    // All at once: while one is read from the disk another may be too.
    const found = new Map(
      await Promise.all(
        contents.map(async (content) => {
          const at = await shardFiles.readAt(shard.files[contentGroup(content)]!, content, place);
          return [content, at] as const;
        }),
      ),
    );
    const decode = <T>(content: ShardContent, decoder: (batch: ArrowBatch, place: number) => T): T => {
      const at = found.get(content)!;
      try {
        return decoder(at.batch, at.place);
      } catch (cause) {
        throw new StillhouseError({
          code: 'CACHE_FILE_UNREADABLE',
          where: `${folder}/${shard.files[contentGroup(content)]!.path}`,
          problem: `row ${place} of the shard cannot be read (${(cause as Error).message})`,
          remedy: 'Run `stillhouse cache verify` on the cache',
          cause,
        });
      }
    };
    const row = decode('rows', decodeRow);
    const positions = labelPositions(row.lossMask, description.positions);
    /** The labels of a group, which must be of this row and its positions. */
    const decodeLabels = <T>(content: ShardContent, decoder: LabelDecoder<T>, countOf: (labels: T) => number): T => {
      const [id, labels] = decode(content, (batch, at) => decoder(batch, at, positions.length));
      const count = countOf(labels);
      if (id === row.id && count === positions.length) return labels;
      const group = contentGroup(content);
      throw new StillhouseError({
        code: 'CACHE_FILE_UNREADABLE',
        where: `${folder}/${shard.files[group]!.path}`,
        problem: `${group} does not belong to the rows`,
        expected: `row ${row.id} with ${positions.length} positions`,
        got: `row ${id} with ${count}`,
        remedy: 'Run `stillhouse cache verify` on the cache',
      });
    };
    const states = new Map<HiddenLayer, HiddenLabels>();
    const countStates = (labels: HiddenLabels) => labels.values.length / labels.width;
    for (const layer of layers) states.set(layer, decodeLabels(layer, await decoderOf(layer), countStates));
    return {
      row,
      positions,
      ...(select.topk === true ? { topk: decodeLabels('topk', decodeTopK!, countPositions) } : {}),
      ...(select.sampled === true ? { sampled: decodeLabels('sampled', decodeSampled!, countPositions) } : {}),
      ...(layers.length > 0 ? { hidden: states } : {}),
    };
  };

  const scales = new Map<HiddenLayer, Promise<HiddenScale>>();
  const hiddenScale = async (layer: HiddenLayer): Promise<HiddenScale | undefined> => {
    requireGroup(hiddenGroup(layer), hidden?.layers.includes(layer) ?? false);
    const file = manifest.scales.find((one) => one.layer === layer);
    if (file === undefined) return undefined;
    const known = scales.get(layer);
    if (known !== undefined) return known;
    const reading = readLocalScale(file);
    scales.set(layer, reading);
    reading.catch(() => scales.delete(layer));
    return reading;
  };
  const readLocalScale = async (file: ListedFile): Promise<HiddenScale> => {
    const local = await files.acquire(file);
    try {
      return await readScale(local.path, description);
    } finally {
      local.release();
    }
  };
  const decoders = new Map<HiddenLayer, HiddenDecoder>();
  const decoderOf = async (layer: HiddenLayer): Promise<HiddenDecoder> => {
    const known = decoders.get(layer);
    if (known !== undefined) return known;
    const shape = { layer, dtype: hidden!.dtype, width: description.teacher!.hiddenSize! };
    const decoder = openHiddenDecoder(shape, hidden!.dtype === 'coded' ? await hiddenScale(layer) : undefined);
    decoders.set(layer, decoder);
    return decoder;
  };

  async function* rows(order?: Iterable<number>, select?: LabelSelection): AsyncGenerator<LabelledRow> {
    const coming: Promise<LabelledRow>[] = [];
    try {
      for (const index of order ?? rowIds.keys()) {
        const reading = readRow(index, select);
        // What goes wrong is said when the row's turn comes.
        reading.catch(() => {});
        coming.push(reading);
        if (coming.length > ROWS_AHEAD) yield await coming.shift()!;
      }
      while (coming.length > 0) yield await coming.shift()!;
    } finally {
      // Whoever stops early may close the cache next.
      await Promise.allSettled(coming);
    }
  }

  async function* stream(): AsyncGenerator<MatrixRows> {
    requireGroup('head', manifest.outputMatrix !== null);
    const matrix = manifest.outputMatrix as ListedMatrix;
    const local = await files.acquire(matrix);
    try {
      yield* streamOutputMatrix(local.path, matrix);
    } finally {
      local.release();
    }
  }

  return {
    folder,
    manifest,
    description,
    digest: manifest.digest,
    rowCount: rowIds.length,
    rowIds,
    openLabels: everything,
    hasOutputMatrix: manifest.outputMatrix !== null && groups.has('head'),
    tokenizerFolder: manifest.tokenizer.length > 0 && groups.has('tokenizer') ? files.tokenizerFolder : null,
    indexOf: (id) => {
      const index = places.get(id);
      if (index === undefined) throw unknownRow(JSON.stringify(id));
      return index;
    },
    readRow,
    rows,
    hiddenScale,
    streamOutputMatrix: stream,
    readOutputMatrix: async () => {
      requireGroup('head', manifest.outputMatrix !== null);
      const { rows: height, columns, dtype } = manifest.outputMatrix!;
      const whole = new Float32Array(height * columns);
      for await (const part of stream()) {
        const start = part.firstRow * columns;
        widenMatrixRows(dtype, part, whole.subarray(start, start + part.rowCount * columns));
      }
      return whole;
    },
    close: async () => {
      await shardFiles.close();
      await files.close();
    },
  };
}
