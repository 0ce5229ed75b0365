import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { type FolderLock, hashFile, sha256Of, writeFileAtomically } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import {
  isSameScale,
  isUsableScale,
  openRowChecks,
  refuseMissingScale,
  refuseTokenizerFile,
  requireSameTokenizer,
} from '../check/writer-checks.ts';
import { openScratch, type Scratch } from '../codecs/arrow-encoding.ts';
import { writeArrowFile } from '../codecs/arrow-file-writer.ts';
import { type HiddenScale, scaledLayers, scalePath } from '../codecs/hidden-scale.ts';
import { encodeOutputMatrix } from '../codecs/output-matrix.ts';
import { encodeScale, readScale } from '../codecs/scale-file.ts';
import { loadZstd } from '../codecs/zstd.ts';
import { describeSize } from '../format/cache-size.ts';
import { type CacheDescription, hiddenGroup, type ShardGroup } from '../format/description.ts';
import type { HiddenLayer } from '../format/hidden-layer.ts';
import type { LabelledRow } from '../format/labelled-row.ts';
import {
  type ListedFile,
  type ListedShard,
  type ManifestBody,
  OUTPUT_MATRIX_PATH,
  type ShardFiles,
  tokenizerPath,
} from '../format/manifest.ts';
import { isPlainFileName } from '../format/manifest-parser.ts';
import { recordShard, type ScoringSettings } from '../format/provenance.ts';
import type { RowRange } from '../format/shard-layout.ts';
import type { CacheWriter } from './cache-writer.ts';
import { publishFirst } from './first-file.ts';
import { type GroupFile, openGroupFile } from './group-file.ts';
import { restrictLabels, type ShardTask } from './shard-tasks.ts';

/** What a writer needs to know of the build it does: a whole cache, a part of one, or more for one. */
export interface WriterPlan {
  readonly folder: string;
  readonly lock: FolderLock;
  /** The program that computes the labels. */
  readonly generator: CacheDescription['generator'];
  readonly shardCount: number;
  rangeOf(index: number): RowRange;
  readonly tasks: readonly ShardTask[];
  /** The ids of rows that are in the cache and not in finished tasks. */
  readonly takenIds: Iterable<string>;
  /** False where another builder brings tokenizer and output matrix. */
  readonly bringsFixedFiles: boolean;
  /** Whether other builders fix scales in the same folder at the same time. */
  readonly sharesScales: boolean;
  /** Writes the state down so that a later run goes on there. */
  persist(state: ManifestBody): Promise<void>;
  /** Called once, with everything written. */
  publish(state: ManifestBody): Promise<void>;
}

/** A shard on its way: its rows are encoded before those of the next, and it is in the manifest before the next is. */
interface ShardUnderWay {
  readonly encoded: Promise<void>;
  readonly stored: Promise<void>;
}

const NOTHING: ShardUnderWay = { encoded: Promise.resolve(), stored: Promise.resolve() };

/** A writer for the tasks of a plan, from a state in which some are finished. */
export async function makeShardWriter(plan: WriterPlan, initial: ManifestBody): Promise<CacheWriter> {
  const { folder, lock, tasks } = plan;
  let state = initial;
  let isOpen = true;
  let begun = initial.shards.length;
  let underWay = 0;
  let latest = NOTHING;
  const { description, rows } = initial;
  const zstd = await loadZstd();
  const rowIds = new Set(plan.takenIds);
  const scales = new Map<HiddenLayer, HiddenScale>();
  // Shards are encoded one after the other, so each group has one.
  const scratches = new Map<ShardGroup, Scratch>();
  const width = description.teacher?.hiddenSize ?? 0;
  for (const { layer, path } of initial.scales) scales.set(layer, await readScale(join(folder, path), description));

  const requireOpen = () => {
    if (!isOpen) throw new Error('the cache writer is closed');
  };
  const commit = async (change: Partial<ManifestBody>) => {
    requireOpen();
    await lock.requireHeld();
    const next = { ...state, ...change };
    await plan.persist(next);
    state = next;
  };
  const put = async (path: string, batches: Parameters<typeof writeArrowFile>[1]): Promise<ListedFile> => {
    requireOpen();
    const { sizeBytes, sha256 } = await writeArrowFile(join(folder, path), batches);
    return { path, sizeBytes, sha256 };
  };
  const adoptScale = async (layer: HiddenLayer, file: ListedFile) => {
    const scale = await readScale(join(folder, file.path), description);
    await commit({ scales: [...state.scales, { layer, ...file }] });
    scales.set(layer, scale);
  };

  /** The files of a shard, written together; they are on the disk before its entry in the manifest is. */
  const writeTask = async (
    task: ShardTask,
    labelled: readonly LabelledRow[],
    settings: ScoringSettings,
    former: ShardUnderWay,
    markEncoded: () => void,
  ): Promise<void> => {
    const written = restrictLabels(description, task.groups);
    refuseMissingScale(written, scales);
    await former.encoded;
    requireOpen();
    const checks = openRowChecks(written, rowIds, task.formerIds);
    const files: GroupFile[] = [];
    try {
      for (const group of task.groups) {
        const layer = description.labels.hidden?.layers.find((one) => hiddenGroup(one) === group);
        const content = layer ?? (group as 'rows' | 'topk' | 'sampled');
        const scratch = scratches.get(group) ?? openScratch();
        scratches.set(group, scratch);
        const codecs = { zstd, scratch, scale: layer === undefined ? undefined : scales.get(layer) };
        files.push(await openGroupFile(folder, task.pathOf(group), content, description, codecs));
      }
      for (const row of labelled) {
        checks.check(row);
        for (const file of files) await file.push(row);
      }
      for (const file of files) await file.flush();
      markEncoded();
      // Only now: where the one before could not be stored nothing of this one stays.
      await former.stored;
      requireOpen();
      // All are waited for, whichever fails.
      const committed = await Promise.allSettled(files.map((file) => file.commit()));
      const listed = committed.map((one) => {
        if (one.status === 'rejected') throw one.reason;
        return one.value;
      });
      const { firstRow, rowCount, groups } = task;
      const shard: ListedShard = {
        firstRow,
        rowCount,
        tokenCount: labelled.reduce((sum, { row }) => sum + row.inputIds.length, 0),
        positionCount: labelled.reduce((sum, { positions }) => sum + positions.length, 0),
        files: {
          ...task.former?.files,
          ...Object.fromEntries(groups.map((group, i) => [group, listed[i]!])),
        } as ShardFiles,
      };
      const made = { generator: plan.generator, settings };
      await commit({
        rows: { planned: rows.planned, stored: state.rows.stored + rowCount },
        shards: [...state.shards, shard],
        provenance: [
          ...state.provenance,
          ...recordShard(description, rows.planned, { firstRow, rowCount, groups }, made),
        ],
      });
    } catch (error) {
      checks.forget();
      // Shards settle in order, so that the last one stands for all.
      await former.stored.catch(() => {});
      throw error;
    } finally {
      for (const file of files) await file.abort();
    }
  };

  return {
    description,
    totalRows: rows.planned,
    shardCount: plan.shardCount,
    shards: tasks.map(({ index }) => index),
    get completedShards() {
      return state.complete ? tasks.length : state.shards.length;
    },
    get isComplete() {
      return state.complete;
    },
    get hasTokenizerFiles() {
      return !plan.bringsFixedFiles || state.tokenizer.length > 0;
    },
    get hasOutputMatrix() {
      return !plan.bringsFixedFiles || state.outputMatrix !== null;
    },
    get size() {
      return describeSize(state);
    },
    shardRange: (index) => {
      const { firstRow, rowCount } = plan.rangeOf(index);
      return [firstRow, firstRow + rowCount] as const;
    },
    putTokenizerFiles: async (files) => {
      if (!plan.bringsFixedFiles) return;
      const sorted = [...files].sort((a, b) => (a.name < b.name ? -1 : 1));
      const tokenizer = sorted.map(({ name, bytes }) => {
        if (!isPlainFileName(name) || description.tokenizer === null) refuseTokenizerFile(folder, name);
        return { path: tokenizerPath(name), sizeBytes: bytes.length, sha256: sha256Of(bytes) };
      });
      if (state.tokenizer.length > 0) return requireSameTokenizer(folder, state.tokenizer, tokenizer);
      requireOpen();
      for (const { name, bytes } of sorted) await writeFileAtomically(join(folder, tokenizerPath(name)), bytes);
      await commit({ tokenizer });
    },
    putOutputMatrix: async (source) => {
      if (!plan.bringsFixedFiles || state.outputMatrix !== null) return;
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
    setScale: async (layer, scale) => {
      const known = scales.get(layer);
      if (known !== undefined && isSameScale(known, scale)) return;
      const isWanted = scaledLayers(description).includes(layer);
      const isUsable = isUsableScale(scale, description.labels.hidden?.dtype, width);
      if (!isWanted || !isUsable || known !== undefined || state.shards.length > 0) {
        throw new StillhouseError({
          code: 'CACHE_SCALE_INVALID',
          where: `scale of ${hiddenGroup(layer)}`,
          problem:
            isWanted && isUsable ? 'it is fixed already and shards may depend on it' : 'the cache has no place for it',
          expected: isWanted
            ? `${width} positive finite numbers or a codebook, as the dtype has it, once, before the first shard`
            : 'no such scale',
        });
      }
      const path = scalePath(layer, description.labels.hidden!.dtype);
      if (!plan.sharesScales) return adoptScale(layer, await put(path, encodeScale(scale)));
      const own = `${path}.${randomUUID()}`;
      await put(own, encodeScale(scale));
      await publishFirst(join(folder, own), join(folder, path));
      await adoptScale(layer, { path, ...(await hashFile(join(folder, path))) });
    },
    scale: (layer) => scales.get(layer),
    adoptCalibration: async () => {
      for (const layer of scaledLayers(description)) {
        if (scales.has(layer)) continue;
        const path = scalePath(layer, description.labels.hidden!.dtype);
        const digest = plan.sharesScales ? await hashFile(join(folder, path)).catch(() => undefined) : undefined;
        if (digest === undefined) return false;
        await adoptScale(layer, { path, ...digest });
      }
      return true;
    },
    writeShard: (index, labelled, settings = {}) => {
      const task = tasks[begun];
      if (state.complete || task === undefined || index !== task.index || labelled.length !== task.rowCount) {
        return Promise.reject(
          new StillhouseError({
            code: 'CACHE_SHARD_UNEXPECTED',
            where: `shard ${index}`,
            problem: 'shards are written in order, each with its rows',
            expected:
              state.complete || task === undefined
                ? 'none, the cache is complete'
                : `shard ${task.index} of ${plan.shardCount} with ${task.rowCount} rows`,
            got: `${labelled.length} rows for shard ${index}`,
          }),
        );
      }
      const former = latest;
      let markEncoded = () => {};
      const encoded = new Promise<void>((resolve) => {
        markEncoded = resolve;
      });
      begun += 1;
      underWay += 1;
      const stored = writeTask(task, labelled, settings, former, markEncoded).finally(() => {
        markEncoded();
        underWay -= 1;
        if (underWay > 0) return;
        // What failed may be tried again.
        begun = state.shards.length;
        latest = NOTHING;
      });
      latest = { encoded, stored };
      return stored;
    },
    finish: async () => {
      if (state.complete) return;
      const { bringsFixedFiles } = plan;
      const missing = [
        ...(state.shards.length < tasks.length ? [`${tasks.length - state.shards.length} shards`] : []),
        ...(bringsFixedFiles && description.tokenizer !== null && state.tokenizer.length === 0
          ? ['the tokenizer files']
          : []),
        ...(bringsFixedFiles && description.labels.head && state.outputMatrix === null ? ['the output matrix'] : []),
      ];
      if (missing.length > 0) {
        throw new StillhouseError({
          code: 'CACHE_UNFINISHED',
          where: folder,
          problem: `the cache cannot be called complete without ${missing.join(', ')}`,
        });
      }
      requireOpen();
      await lock.requireHeld();
      const done = { ...state, complete: true };
      await plan.publish(done);
      state = done;
    },
    close: async () => {
      // What is under way is stored or has failed.
      await latest.stored.catch(() => {});
      if (!isOpen) return;
      isOpen = false;
      await lock.release();
    },
  };
}
