import { rename } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { hashFile, makeFolder } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import {
  type CacheFiles,
  type CacheGroup,
  type CacheManifest,
  openCache,
  openCacheFiles,
  type TeacherCache,
} from '@stillhouse/teacher-cache';
import { hasScheme, parseLocation } from '../layout/location.ts';
import { findCache, type ReadContext } from '../layout/remote-layout.ts';
import { openReader } from '../stores/open-store.ts';
import type { RemoteReader } from '../stores/remote-store.ts';
import { downloadBlob } from '../transfer/download.ts';
import { resolveTransfer, type TransferOptions } from '../transfer/transfer-options.ts';
import { openLocalBlobs, removeAbandoned } from './local-blobs.ts';

export interface RemoteCacheOptions extends Omit<TransferOptions, 'onProgress'> {
  /**
   * Folder for files while they are needed; several processes may share one. Default `STILLHOUSE_CACHE_DIR`, else
   * `~/.cache/stillhouse`.
   */
  readonly cacheFolder?: string;
  /** The most that files of shards and the output matrix take there. Default `STILLHOUSE_CACHE_BYTES`, else 10 GiB. */
  readonly cacheBytes?: number;
  /** The groups that will be read; by default all that the cache has. Nothing of the others is fetched. */
  readonly groups?: readonly CacheGroup[];
  /**
   * How much of the batches that were read last stays in memory. Default: all, where rows and labels take up to 256
   * MiB; else 64 MiB.
   */
  readonly batchCacheBytes?: number;
}

const DEFAULT_CACHE_BYTES = 10 * 2 ** 30;

/**
 * Opens a cache where it is: a folder as ever, a location with a scheme (`s3://BUCKET/PREFIX#NAME`) without pulling it.
 * @throws StillhouseError as `openCache` of teacher-cache and {@link openRemoteCache}
 */
export function openCacheAt(location: string, options: RemoteCacheOptions = {}): Promise<TeacherCache> {
  return hasScheme(location) ? openRemoteCache(location, options) : openCache(location, options);
}

/**
 * Opens a cache in a remote without pulling it: a file is fetched when it is first read from, and verified; files that
 * were not used for longest make room for others.
 * @param location `PLACE[#NAME]`
 * @throws StillhouseError REMOTE_LOCATION_INVALID, REMOTE_CACHE_UNKNOWN, REMOTE_FILE_MISSING, REMOTE_FILE_DAMAGED,
 *   REMOTE_TRANSFER_FAILED, STREAM_FILE_TOO_LARGE, STREAM_BOUND_INVALID, and those of `openCache`; reading the cache
 *   may throw those of transfers too
 */
export async function openRemoteCache(location: string, options: RemoteCacheOptions = {}): Promise<TeacherCache> {
  const parsed = parseLocation(location);
  const context = resolveTransfer(options);
  const { STILLHOUSE_CACHE_DIR, XDG_CACHE_HOME } = process.env;
  const folder =
    options.cacheFolder ?? (STILLHOUSE_CACHE_DIR || join(XDG_CACHE_HOME || join(homedir(), '.cache'), 'stillhouse'));
  const limitBytes = options.cacheBytes ?? readBound(process.env.STILLHOUSE_CACHE_BYTES);
  const store = await openReader(parsed);
  let isOpen = false;
  try {
    const { manifest } = await findCache(store, parsed, context);
    await makeFolder(folder);
    await removeAbandoned(folder);
    const wantsTokenizer = options.groups === undefined || options.groups.includes('tokenizer');
    const tokenizerFolder = await fetchTokenizer(store, folder, wantsTokenizer ? manifest : undefined, context);
    const where = `${parsed.text}#${parsed.name}`;
    const files = streamFiles(store, { where, folder, limitBytes, tokenizerFolder }, context);
    isOpen = true;
    const { groups, batchCacheBytes } = options;
    return await openCacheFiles(files, manifest, {
      ...(groups === undefined ? {} : { groups }),
      ...(batchCacheBytes === undefined ? {} : { batchCacheBytes }),
    });
  } finally {
    if (!isOpen) store.close();
  }
}

function readBound(text: string | undefined): number {
  if (text === undefined || text === '') return DEFAULT_CACHE_BYTES;
  const bytes = Number(text);
  if (Number.isSafeInteger(bytes) && bytes > 0) return bytes;
  throw new StillhouseError({
    code: 'STREAM_BOUND_INVALID',
    where: 'STILLHOUSE_CACHE_BYTES',
    problem: 'this is no number of bytes',
    expected: 'a whole number above 0',
    got: JSON.stringify(text),
  });
}

interface StreamPlace extends Pick<CacheFiles, 'where' | 'tokenizerFolder'> {
  /** For files while they are needed. */
  readonly folder: string;
  readonly limitBytes: number;
}

function streamFiles(
  store: RemoteReader,
  { where, folder, limitBytes, tokenizerFolder }: StreamPlace,
  context: ReadContext,
): CacheFiles {
  let closeIdle = () => Promise.resolve(false);
  const blobs = openLocalBlobs(
    folder,
    limitBytes,
    (file, path) => downloadBlob(store, file, path, { ...context, isDurable: false }),
    () => closeIdle(),
  );
  return {
    where,
    tokenizerFolder,
    // The manifest was written when every file was there.
    check: async () => {},
    acquire: (file) => blobs.acquire(file),
    setIdleCloser: (close) => {
      closeIdle = close;
    },
    close: async () => store.close(),
  };
}

/** The files of the tokenizer under their names. Small and needed throughout, they do not count towards the bound. */
async function fetchTokenizer(
  store: RemoteReader,
  folder: string,
  manifest: CacheManifest | undefined,
  context: ReadContext,
): Promise<string> {
  const target = join(folder, 'tokenizers', manifest?.digest ?? 'none');
  if (manifest === undefined || manifest.tokenizer.length === 0) return target;
  await makeFolder(target);
  for (const file of manifest.tokenizer) {
    const path = join(target, file.path.slice(file.path.lastIndexOf('/') + 1));
    const found = await hashFile(path).catch(() => undefined);
    if (found?.sha256 === file.sha256) continue;
    const partial = `${path}.${process.pid}.partial`;
    await downloadBlob(store, file, partial, context);
    await rename(partial, path);
  }
  return target;
}
