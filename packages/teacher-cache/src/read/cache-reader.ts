import { StillhouseError } from '@stillhouse/errors';
import type { HiddenScale } from '../codecs/hidden-scale.ts';
import type { MatrixRows } from '../codecs/output-matrix.ts';
import { type CacheDescription, type CacheGroup, hiddenGroup, shardGroups } from '../format/description.ts';
import type { HiddenLayer } from '../format/hidden-layer.ts';
import type { LabelledRow, LabelSelection } from '../format/labelled-row.ts';
import { type CacheManifest, listFiles } from '../format/manifest.ts';
import { readManifest } from '../format/manifest-parser.ts';
import { type CacheFiles, openFolderFiles } from './cache-files.ts';
import { openHiddenScales } from './hidden-scales.ts';
import { openMatrixReader } from './matrix-reader.ts';
import { listOmittedGroups, refuseOmitted } from './pulled-state.ts';
import { readRowIds } from './row-ids.ts';
import { openRowReader } from './row-reader.ts';
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
   * `first-touch` (default) hashes each file before anything is read from it, unless `cache pull` has and size and
   * times are as they were then; when it is opened again later, it is hashed again if size or times have changed.
   */
  readonly verifyOnRead?: 'first-touch' | 'never';
  /**
   * How much of the batches that were read last stays in memory. Default: all, where rows and labels take up to 256
   * MiB; else 64 MiB.
   */
  readonly batchCacheBytes?: number;
}

/** So many rows are on their way while one is worked on: enough that the disk is never waited for twice. */
const ROWS_AHEAD = 3;

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
  /**
   * What a layer's states are decoded with: the RMS of each channel, [hiddenSize], or a codebook; undefined for others.
   */
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
  const { description } = manifest;
  const rowIds = await readRowIds(shardFiles, manifest, files.where);
  const places = new Map(rowIds.map((id, index) => [id, index]));
  const requireGroup = openGroupCheck(files.where, manifest, groups);
  const scales = openHiddenScales(files, manifest);
  const read = await openRowReader({ where: files.where, manifest, shardFiles, scales });
  const matrix = openMatrixReader(files, manifest.outputMatrix);
  const { topk, sampled = null, hidden } = description.labels;
  const openLabels: LabelSelection = {
    topk: topk !== null && groups.has('topk'),
    sampled: sampled !== null && groups.has('sampled'),
    hidden: (hidden?.layers ?? []).filter((layer) => groups.has(hiddenGroup(layer))),
  };
  const refuseUnknown = (name: string): never => {
    throw new StillhouseError({ code: 'CACHE_ROW_UNKNOWN', where: files.where, problem: `there is no row ${name}` });
  };
  const readRow = async (index: number, select: LabelSelection = openLabels): Promise<LabelledRow> => {
    if (!Number.isInteger(index) || index < 0 || index >= rowIds.length) {
      refuseUnknown(`number ${index}, they go from 0 to ${rowIds.length - 1}`);
    }
    for (const group of groupsOf(select)) requireGroup(group);
    return read(index, select);
  };
  return {
    folder: files.where,
    manifest,
    description,
    digest: manifest.digest,
    rowCount: rowIds.length,
    rowIds,
    openLabels,
    hasOutputMatrix: manifest.outputMatrix !== null && groups.has('head'),
    tokenizerFolder: manifest.tokenizer.length > 0 && groups.has('tokenizer') ? files.tokenizerFolder : null,
    indexOf: (id) => places.get(id) ?? refuseUnknown(JSON.stringify(id)),
    readRow,
    rows: (order = rowIds.keys(), select) => readAhead(order, (index) => readRow(index, select)),
    hiddenScale: async (layer) => {
      requireGroup(hiddenGroup(layer));
      return scales.scaleOf(layer);
    },
    streamOutputMatrix: async function* () {
      requireGroup('head');
      yield* matrix.stream();
    },
    readOutputMatrix: async () => {
      requireGroup('head');
      return matrix.readWhole();
    },
    close: async () => {
      await shardFiles.close();
      await files.close();
    },
  };
}

function openGroupCheck(
  where: string,
  { description, outputMatrix }: CacheManifest,
  groups: ReadonlySet<CacheGroup>,
): (group: CacheGroup) => void {
  const had: readonly CacheGroup[] = [...shardGroups(description), ...(outputMatrix === null ? [] : ['head' as const])];
  return (group) => {
    const exists = had.includes(group);
    if (exists && groups.has(group)) return;
    throw new StillhouseError({
      code: 'CACHE_GROUP_ABSENT',
      where,
      problem: `${group} is not in this cache${exists ? ' as it was opened' : ''}`,
      got: `the groups ${[...groups].sort().join(', ')}`,
      remedy: exists
        ? 'Bring that group with `stillhouse cache pull --groups`, or choose labels that do without'
        : 'Build a cache with that label, or train on another',
    });
  };
}

const groupsOf = ({ topk, sampled, hidden = [] }: LabelSelection): readonly CacheGroup[] => [
  ...(topk === true ? (['topk'] as const) : []),
  ...(sampled === true ? (['sampled'] as const) : []),
  ...hidden.map(hiddenGroup),
];

/** Reads in the given order, the next few while one is worked on. */
async function* readAhead<T>(order: Iterable<number>, read: (index: number) => Promise<T>): AsyncGenerator<T> {
  const coming: Promise<T>[] = [];
  try {
    for (const index of order) {
      const reading = read(index);
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
