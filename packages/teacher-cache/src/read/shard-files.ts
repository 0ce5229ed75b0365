import { StillhouseError } from '@stillhouse/errors';
import { type ArrowBatch, type ArrowFile, openArrowFile } from '../codecs/arrow-file-reader.ts';
import { shardSchema } from '../format/arrow-schemas.ts';
import type { ShardContent } from '../format/description.ts';
import type { CacheManifest, ListedFile } from '../format/manifest.ts';
import type { CacheFiles } from './cache-files.ts';
import { limitKeptBatches } from './kept-batches.ts';

const OPEN_FILE_LIMIT = 128;
/**
 * Another process that shares the place of the files may remove one between the moment we learn its path and open it.
 */
const OPEN_ATTEMPTS = 3;

/** The files of shards, opened when needed: open files and the batches read last are both bounded. */
export interface ShardFileReader {
  withFile<T>(file: ListedFile, group: ShardContent, use: (arrow: ArrowFile) => Promise<T>): Promise<T>;
  /** The batch that holds row `row` of a shard, with the row's place in it. */
  readAt(
    file: ListedFile,
    group: ShardContent,
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

interface OpenFile {
  readonly arrow: ArrowFile;
  close(): Promise<void>;
}

async function openFile(
  files: CacheFiles,
  manifest: CacheManifest,
  file: ListedFile,
  group: ShardContent,
): Promise<OpenFile> {
  for (let attempt = 1; ; attempt++) {
    const local = await files.acquire(file);
    try {
      const arrow = await openArrowFile(local.path, shardSchema(manifest.description, group));
      return {
        arrow,
        close: async () => {
          await arrow.close();
          local.release();
        },
      };
    } catch (error) {
      local.release();
      const isGone = ((error as Error).cause as NodeJS.ErrnoException | undefined)?.code === 'ENOENT';
      if (!isGone || attempt === OPEN_ATTEMPTS) throw error;
    }
  }
}

export function openShardFiles(
  files: CacheFiles,
  manifest: CacheManifest,
  options: { readonly batchCacheBytes?: number },
): ShardFileReader {
  const pool = openFilePool(files, manifest);
  const batches = keepBatches(options.batchCacheBytes ?? limitKeptBatches(manifest));
  const indexes = new Map<string, readonly number[]>();

  const withFile: ShardFileReader['withFile'] = (file, group, use) =>
    pool.withFile(file, group, (arrow) => {
      indexes.set(file.path, arrow.batchStarts);
      return use(arrow);
    });

  return {
    withFile,
    readAt: async (file, group, row) => {
      const starts = indexes.get(file.path) ?? (await withFile(file, group, async ({ batchStarts }) => batchStarts));
      const index = findBatch(starts, row);
      if (index === undefined) {
        throw new StillhouseError({
          code: 'CACHE_FILE_UNREADABLE',
          where: `${files.where}/${file.path}`,
          problem: `row ${row} of the shard is not in the file`,
        });
      }
      const read = () => withFile(file, group, (arrow) => arrow.readBatch(index));
      const batch = await batches.take(`${file.path}:${index}`, read);
      return { batch, place: row - batch.firstRow };
    },
    close: async () => {
      batches.clear();
      await pool.close();
    },
  };
}

/** Files that stay open until others are needed. */
function openFilePool(files: CacheFiles, manifest: CacheManifest): Pick<ShardFileReader, 'withFile' | 'close'> {
  // In order of use, the oldest first.
  const opened = new Map<string, { readonly opening: Promise<OpenFile>; users: number }>();
  const closeOldest = async (): Promise<boolean> => {
    for (const [path, { opening, users }] of opened) {
      if (users > 0) continue;
      opened.delete(path);
      await (await opening).close();
      return true;
    }
    return false;
  };
  files.setIdleCloser?.(closeOldest);
  return {
    withFile: async (file, group, use) => {
      const entry = opened.get(file.path) ?? { opening: openFile(files, manifest, file, group), users: 0 };
      opened.delete(file.path);
      opened.set(file.path, entry);
      entry.users++;
      try {
        const { arrow } = await entry.opening.catch((error: unknown) => {
          opened.delete(file.path);
          throw error;
        });
        return await use(arrow);
      } finally {
        entry.users--;
        if (opened.size > OPEN_FILE_LIMIT) await closeOldest();
      }
    },
    close: async () => {
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

interface KeptBatch {
  readonly reading: Promise<ArrowBatch>;
  /** 0 until it is read. */
  sizeBytes: number;
}

/** The batches that were asked for last, up to so many bytes. */
function keepBatches(limitBytes: number) {
  // In order of use, the oldest first.
  const batches = new Map<string, KeptBatch>();
  let heldBytes = 0;
  const hold = (entry: KeptBatch, sizeBytes: number) => {
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
    take: async (key: string, read: () => Promise<ArrowBatch>): Promise<ArrowBatch> => {
      const entry = batches.get(key) ?? { reading: read(), sizeBytes: 0 };
      batches.delete(key);
      batches.set(key, entry);
      try {
        const batch = await entry.reading;
        if (entry.sizeBytes === 0 && batches.get(key) === entry) hold(entry, batch.sizeBytes);
        return batch;
      } catch (error) {
        batches.delete(key);
        throw error;
      }
    },
    clear: () => batches.clear(),
  };
}
