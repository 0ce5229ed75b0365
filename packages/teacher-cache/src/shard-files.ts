import { join } from 'node:path';
import { hashFile } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { type ArrowBatch, type ArrowFile, openArrowFile } from './arrow-file-reader.ts';
import { shardSchema } from './arrow-schemas.ts';
import type { HiddenLayer } from './description.ts';
import type { CacheManifest, ListedFile } from './manifest.ts';

const OPEN_FILE_LIMIT = 128;
const DEFAULT_BATCH_CACHE_BYTES = 64 << 20;

/** The files of shards, opened when needed: open files and the batches read last are both bounded. */
export interface ShardFileReader {
  /** Compares a file's hash with the manifest, the first time it is asked to. @throws StillhouseError CACHE_FILE_DAMAGED */
  verify(file: ListedFile): Promise<void>;
  withFile<T>(
    file: ListedFile,
    group: 'rows' | 'topk' | HiddenLayer,
    use: (arrow: ArrowFile) => Promise<T>,
  ): Promise<T>;
  /** The batch that holds row `row` of a shard, with the row's place in it. */
  readAt(
    file: ListedFile,
    group: 'rows' | 'topk' | HiddenLayer,
    row: number,
  ): Promise<{ readonly batch: ArrowBatch; readonly place: number }>;
  close(): Promise<void>;
}

/** The batch whose rows include `row`, by bisection. */
function findBatch(starts: readonly number[], row: number): number | undefined {
  let low = 0;
  let high = starts.length - 1;
  if (row < 0 || row >= starts[high]!) return undefined;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (starts[middle]! <= row) low = middle;
    else high = middle;
  }
  return low;
}

export function openShardFiles(
  folder: string,
  manifest: CacheManifest,
  options: { readonly verifyOnRead?: 'first-touch' | 'never'; readonly batchCacheBytes?: number },
): ShardFileReader {
  const limitBytes = options.batchCacheBytes ?? DEFAULT_BATCH_CACHE_BYTES;
  const hashed = new Map<string, Promise<void>>();
  const opened = new Map<string, { readonly opening: Promise<ArrowFile>; users: number }>();
  const indexes = new Map<string, readonly number[]>();
  // In order of use, the oldest first.
  const batches = new Map<string, { readonly reading: Promise<ArrowBatch>; sizeBytes: number }>();
  let heldBytes = 0;

  const verify = (file: ListedFile): Promise<void> => {
    if (options.verifyOnRead === 'never') return Promise.resolve();
    const known = hashed.get(file.path);
    if (known !== undefined) return known;
    const checking = hashFile(join(folder, file.path)).then(({ sha256 }) => {
      if (sha256 === file.sha256) return;
      throw new StillhouseError({
        code: 'CACHE_FILE_DAMAGED',
        where: join(folder, file.path),
        problem: 'the content is not what was written',
        expected: `sha256 ${file.sha256}`,
        got: sha256,
        remedy: 'Fetch the file again, or build the cache anew',
      });
    });
    hashed.set(file.path, checking);
    return checking;
  };

  const withFile: ShardFileReader['withFile'] = async (file, group, use) => {
    let entry = opened.get(file.path);
    if (entry === undefined) {
      const schema = shardSchema(manifest.description, group);
      entry = { opening: verify(file).then(() => openArrowFile(join(folder, file.path), schema)), users: 0 };
    } else {
      opened.delete(file.path);
    }
    opened.set(file.path, entry);
    entry.users++;
    try {
      const arrow = await entry.opening.catch((error: unknown) => {
        opened.delete(file.path);
        throw error;
      });
      indexes.set(file.path, arrow.batchStarts);
      return await use(arrow);
    } finally {
      entry.users--;
      if (opened.size > OPEN_FILE_LIMIT) await closeOldest();
    }
  };

  const closeOldest = async () => {
    for (const [path, { opening, users }] of opened) {
      if (users > 0) continue;
      opened.delete(path);
      await (await opening).close();
      return;
    }
  };

  const readAt: ShardFileReader['readAt'] = async (file, group, row) => {
    const starts = indexes.get(file.path) ?? (await withFile(file, group, async ({ batchStarts }) => batchStarts));
    const index = findBatch(starts, row);
    if (index === undefined) {
      throw new StillhouseError({
        code: 'CACHE_FILE_UNREADABLE',
        where: join(folder, file.path),
        problem: `row ${row} of the shard is not in the file`,
      });
    }
    const key = `${file.path}:${index}`;
    let entry = batches.get(key);
    if (entry === undefined) {
      entry = { reading: withFile(file, group, (arrow) => arrow.readBatch(index)), sizeBytes: 0 };
    } else {
      batches.delete(key);
    }
    batches.set(key, entry);
    try {
      const batch = await entry.reading;
      if (entry.sizeBytes === 0 && batches.get(key) === entry) hold(entry, batch.sizeBytes);
      return { batch, place: row - batch.firstRow };
    } catch (error) {
      batches.delete(key);
      throw error;
    }
  };

  const hold = (entry: { sizeBytes: number }, sizeBytes: number) => {
    entry.sizeBytes = sizeBytes;
    heldBytes += sizeBytes;
    for (const [key, oldest] of batches) {
      if (heldBytes <= limitBytes || oldest === entry) break;
      if (oldest.sizeBytes === 0) continue;
      heldBytes -= oldest.sizeBytes;
      batches.delete(key);
    }
  };

  return {
    verify,
    withFile,
    readAt,
    close: async () => {
      batches.clear();
      for (const { opening } of opened.values()) {
        await opening.then(
          (file) => file.close(),
          () => {},
        );
      }
      opened.clear();
    },
  };
}
