import { rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { hashFile, writeFileAtomically } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { decodeRow } from '../codecs/arrow-decoding.ts';
import { encodeShard } from '../codecs/arrow-encoding.ts';
import { openArrowFile } from '../codecs/arrow-file-reader.ts';
import { writeArrowFile } from '../codecs/arrow-file-writer.ts';
import type { HiddenScale } from '../codecs/hidden-scale.ts';
import { encodeOutputMatrix, type OutputMatrixSource } from '../codecs/output-matrix.ts';
import { encodeScale, readScale } from '../codecs/scale-file.ts';
import { loadZstd } from '../codecs/zstd.ts';
import { rowsSchema } from '../format/arrow-schemas.ts';
import { type CacheDescription, hiddenGroup, type ShardGroup, shardGroups } from '../format/description.ts';
import type { HiddenLayer } from '../format/hidden-layer.ts';
import type { CachedRow, LabelledRow } from '../format/labelled-row.ts';
import { type CacheManifest, type ListedFile, listFiles } from '../format/manifest.ts';
import { readManifest } from '../format/manifest-parser.ts';
import { listOmittedGroups } from '../read/pulled-state.ts';
import { lockForBuilding } from './builder-lock.ts';
import { restrictLabels } from './shard-tasks.ts';

/** A shard of which some files are damaged or missing. */
export interface DamagedShard {
  readonly index: number;
  readonly groups: readonly ShardGroup[];
}

/** The damage of a cache and the way to mend it. Whatever is restored has the hash that the manifest says. */
export interface CacheRepair {
  readonly manifest: CacheManifest;
  /** Paths of all files that are damaged or missing. */
  readonly damaged: readonly string[];
  readonly shards: readonly DamagedShard[];
  readonly scales: readonly HiddenLayer[];
  readonly isOutputMatrixDamaged: boolean;
  /** Names without their folder. */
  readonly tokenizerFiles: readonly string[];
  /** The labels of a shard that are to be computed. */
  labelsOf(shard: DamagedShard): CacheDescription['labels'];
  /** The rows of a shard, where its file of rows is sound or restored; else undefined. */
  readRows(shard: number): Promise<readonly CachedRow[] | undefined>;
  /** The scale of a layer; undefined until it is restored, if it is damaged. */
  scale(layer: HiddenLayer): HiddenScale | undefined;
  /** @throws StillhouseError CACHE_REPAIR_DIFFERS */
  setScale(layer: HiddenLayer, scale: HiddenScale): Promise<void>;
  /** Writes the damaged files of a shard anew. @throws StillhouseError CACHE_REPAIR_DIFFERS */
  restoreShard(shard: DamagedShard, rows: readonly LabelledRow[]): Promise<void>;
  /** @throws StillhouseError CACHE_REPAIR_DIFFERS */
  restoreOutputMatrix(source: OutputMatrixSource): Promise<void>;
  /** @throws StillhouseError CACHE_REPAIR_DIFFERS */
  restoreTokenizerFile(name: string, bytes: Uint8Array): Promise<void>;
  close(): Promise<void>;
}

/**
 * Hashes every file of a cache and says what must be restored. Groups that a pull left out are not missed.
 * @throws StillhouseError CACHE_NOT_FOUND, CACHE_MANIFEST_INVALID (a manifest cannot be repaired), CACHE_IN_USE
 */
export async function openCacheRepair(folder: string): Promise<CacheRepair> {
  const manifest = await readManifest(folder);
  const lock = await lockForBuilding(folder);
  try {
    return await makeRepair(folder, manifest, lock.release);
  } catch (error) {
    await lock.release();
    throw error;
  }
}

async function makeRepair(folder: string, manifest: CacheManifest, release: () => Promise<void>): Promise<CacheRepair> {
  const { description } = manifest;
  const broken = new Set<string>();
  const omitted = await listOmittedGroups(folder, manifest);
  for (const { group, file } of listFiles(manifest)) {
    if (!omitted.has(group) && !(await isSound(folder, file))) broken.add(file.path);
  }
  const damaged = [...broken];
  const isBroken = ({ path }: ListedFile) => broken.has(path);
  const shards = manifest.shards.flatMap(({ files }, index): readonly DamagedShard[] => {
    const groups = shardGroups(description).filter((group) => isBroken(files[group]!));
    return groups.length === 0 ? [] : [{ index, groups }];
  });
  const scales = new Map<HiddenLayer, HiddenScale>();
  for (const file of manifest.scales) {
    if (isBroken(file) || omitted.has(hiddenGroup(file.layer))) continue;
    scales.set(file.layer, await readScale(join(folder, file.path), description));
  }
  const restore = async (file: ListedFile, write: (path: string) => Promise<{ readonly sha256: string }>) => {
    const staged = join(folder, `${file.path}.repair`);
    try {
      const { sha256 } = await write(staged);
      if (sha256 !== file.sha256) refuseDifference(join(folder, file.path), file, sha256);
      await rename(staged, join(folder, file.path));
      broken.delete(file.path);
    } finally {
      await rm(staged, { force: true });
    }
  };
  return {
    manifest,
    damaged,
    shards,
    scales: manifest.scales.filter(isBroken).map(({ layer }) => layer),
    isOutputMatrixDamaged: manifest.outputMatrix !== null && isBroken(manifest.outputMatrix),
    tokenizerFiles: manifest.tokenizer.filter(isBroken).map(({ path }) => path.slice('tokenizer/'.length)),
    labelsOf: ({ groups }) => restrictLabels(description, groups).labels,
    readRows: async (index) => {
      const { rows } = manifest.shards[index]!.files;
      return isBroken(rows) ? undefined : readShardRows(folder, rows);
    },
    scale: (layer) => scales.get(layer),
    setScale: async (layer, scale) => {
      const file = manifest.scales.find((one) => one.layer === layer)!;
      await restore(file, (path) => writeArrowFile(path, encodeScale(scale)));
      scales.set(layer, scale);
    },
    restoreShard: async ({ index, groups }, rows) => {
      const zstd = await loadZstd();
      for (const group of groups) {
        const layer = description.labels.hidden?.layers.find((one) => hiddenGroup(one) === group);
        const scale = layer === undefined ? undefined : scales.get(layer);
        const batches = encodeShard(rows, layer ?? (group as 'rows' | 'topk' | 'sampled'), description, {
          zstd,
          scale,
        });
        await restore(manifest.shards[index]!.files[group]!, (path) => writeArrowFile(path, batches));
      }
    },
    restoreOutputMatrix: (source) =>
      restore(manifest.outputMatrix!, (path) => writeArrowFile(path, encodeOutputMatrix(source))),
    restoreTokenizerFile: async (name, bytes) => {
      const file = manifest.tokenizer.find(({ path }) => path === `tokenizer/${name}`)!;
      await restore(file, (path) => writeFileAtomically(path, bytes));
    },
    close: release,
  };
}

async function isSound(folder: string, file: ListedFile): Promise<boolean> {
  const path = join(folder, file.path);
  const size = await stat(path).then(
    (stats) => (stats.isFile() ? stats.size : undefined),
    () => undefined,
  );
  if (size !== file.sizeBytes) return false;
  const digest = await hashFile(path).catch(() => undefined);
  return digest?.sha256 === file.sha256;
}

async function readShardRows(folder: string, file: ListedFile): Promise<readonly CachedRow[]> {
  const arrow = await openArrowFile(join(folder, file.path), rowsSchema);
  try {
    const rows: CachedRow[] = [];
    for (let i = 0; i + 1 < arrow.batchStarts.length; i++) {
      const batch = await arrow.readBatch(i);
      for (let place = 0; place < batch.rowCount; place++) rows.push(decodeRow(batch, place));
    }
    return rows;
  } finally {
    await arrow.close();
  }
}

function refuseDifference(where: string, file: ListedFile, got: string): never {
  throw new StillhouseError({
    code: 'CACHE_REPAIR_DIFFERS',
    where,
    problem: 'what was computed anew is not what was there, so the damaged file was left',
    expected: `sha256 ${file.sha256}`,
    got,
    remedy: 'Repair on a machine of the kind that built it, with the device and batchTokens that the manifest gives',
  });
}
