import { isStillhouseError, StillhouseError } from '@stillhouse/errors';
import { type CacheManifest, MANIFEST_LIMIT_BYTES, parseManifest } from '@stillhouse/teacher-cache';
import type { RemoteReader } from '../stores/remote-store.ts';
import { type TransferPolicy, withRetries } from '../transfer/transfer-policy.ts';
import { isCacheName, type RemoteLocation } from './location.ts';
import { readWhole } from './read-whole.ts';

/** Version of the layout of a remote; see REMOTE.md. */
export const REMOTE_VERSION = 1;
export const INDEX_KEY = 'index.json';
export const blobKey = (sha256: string) => `blobs/sha256/${sha256.slice(0, 2)}/${sha256}`;
export const manifestKey = (digest: string) => `caches/${digest}/manifest.json`;
export const refKey = (name: string) => `refs/${name}.json`;

export const isDigest = (text: string): boolean => /^[0-9a-f]{64}$/.test(text);

const SMALL_FILE_LIMIT_BYTES = 16 << 20;

/** What a remote that cannot be listed says about itself. */
export interface RemoteIndex {
  readonly refs: Readonly<Record<string, string>>;
  readonly caches: readonly string[];
}

export interface ReadContext {
  readonly policy: TransferPolicy;
  readonly signal: AbortSignal | undefined;
}

export const encodeRef = (digest: string) => encodeJson({ format: 'stillhouse-cache-ref', digest });
export const encodeIndex = ({ refs, caches }: RemoteIndex) =>
  encodeJson({
    format: 'stillhouse-remote-index',
    refs: Object.fromEntries(Object.entries(refs).sort(([a], [b]) => (a < b ? -1 : 1))),
    caches: [...caches].sort(),
  });

function encodeJson({ format, ...rest }: { readonly format: string; readonly [key: string]: unknown }): Uint8Array {
  return Buffer.from(`${JSON.stringify({ format, version: REMOTE_VERSION, ...rest }, null, 1)}\n`);
}

/** @throws StillhouseError REMOTE_INVALID, REMOTE_VERSION_TOO_NEW */
async function readJson(
  store: RemoteReader,
  key: string,
  format: string,
  context: ReadContext,
): Promise<Record<string, unknown> | undefined> {
  const bytes = await readWhole(store, key, SMALL_FILE_LIMIT_BYTES, context);
  if (bytes === undefined) return undefined;
  const where = `${store.where}/${key}`;
  let value: unknown;
  try {
    value = JSON.parse(bytes.toString('utf8'));
  } catch {
    value = undefined;
  }
  if (typeof value !== 'object' || value === null || (value as { format?: unknown }).format !== format) {
    throw new StillhouseError({
      code: 'REMOTE_INVALID',
      where,
      problem: 'the file is not what a remote has there',
      expected: `JSON of format ${format}`,
      got: JSON.stringify(bytes.subarray(0, 40).toString('utf8')),
      remedy: 'Check that the location is one that `stillhouse cache push` wrote',
    });
  }
  const { version } = value as { readonly version?: unknown };
  if (typeof version !== 'number' || version > REMOTE_VERSION) {
    throw new StillhouseError({
      code: 'REMOTE_VERSION_TOO_NEW',
      where,
      problem: 'the remote was written by a newer version than this one can read',
      expected: `layout version ${REMOTE_VERSION}`,
      got: JSON.stringify(version) ?? 'none',
      remedy: 'Update Stillhouse',
    });
  }
  return value as Record<string, unknown>;
}

/** The digest that a name stands for; undefined if there is no such name. */
export async function readRef(store: RemoteReader, name: string, context: ReadContext): Promise<string | undefined> {
  const ref = await readJson(store, refKey(name), 'stillhouse-cache-ref', context);
  if (ref === undefined) return undefined;
  if (typeof ref.digest === 'string' && isDigest(ref.digest)) return ref.digest;
  throw new StillhouseError({
    code: 'REMOTE_INVALID',
    where: `${store.where}/${refKey(name)}`,
    problem: 'the name does not lead to a cache',
    expected: 'a digest of 64 hexadecimal digits',
    got: JSON.stringify(ref.digest) ?? 'nothing',
  });
}

/** Names and caches of a remote: its files listed, or its index where files cannot be listed. */
export async function readIndex(store: RemoteReader, context: ReadContext): Promise<RemoteIndex> {
  const list = (folder: 'refs' | 'caches') =>
    withRetries(`${store.where}/${folder}`, context.policy, context.signal, (signal) => store.list(folder, signal));
  const [refKeys, cacheKeys] = [await list('refs'), await list('caches')];
  if (refKeys === undefined || cacheKeys === undefined) return readIndexFile(store, context);
  const refs: Record<string, string> = {};
  for (const key of refKeys) {
    const name = /^refs\/(.*)\.json$/.exec(key)?.[1];
    if (name === undefined || !isCacheName(name)) continue;
    const digest = await readRef(store, name, context);
    if (digest !== undefined) refs[name] = digest;
  }
  const caches = cacheKeys.flatMap((key) => /^caches\/([0-9a-f]{64})\/manifest\.json$/.exec(key)?.[1] ?? []);
  return { refs, caches };
}

async function readIndexFile(store: RemoteReader, context: ReadContext): Promise<RemoteIndex> {
  const index = await readJson(store, INDEX_KEY, 'stillhouse-remote-index', context);
  if (index === undefined) {
    throw new StillhouseError({
      code: 'REMOTE_NOT_FOUND',
      where: store.where,
      problem: `there is no remote here, ${INDEX_KEY} is missing`,
      remedy: 'Check the address; `stillhouse cache push` writes that file',
    });
  }
  const refs: Record<string, string> = {};
  for (const [name, digest] of Object.entries((index.refs ?? {}) as object)) {
    if (isCacheName(name) && typeof digest === 'string' && isDigest(digest)) refs[name] = digest;
  }
  const caches = Array.isArray(index.caches) ? index.caches.filter((one): one is string => isDigest(String(one))) : [];
  return { refs, caches };
}

export interface RemoteManifest {
  readonly manifest: CacheManifest;
  /** The bytes as they stand in the remote. */
  readonly content: Buffer;
}

/** @returns undefined if the remote has no such cache */
export async function readRemoteManifest(
  store: RemoteReader,
  digest: string,
  context: ReadContext,
): Promise<RemoteManifest | undefined> {
  const key = manifestKey(digest);
  const content = await readWhole(store, key, MANIFEST_LIMIT_BYTES, context);
  if (content === undefined) return undefined;
  const where = `${store.where}/${key}`;
  const manifest = parseManifest(content.toString('utf8'), where);
  if (manifest.digest === digest) return { manifest, content };
  throw new StillhouseError({
    code: 'REMOTE_INVALID',
    where,
    problem: 'the manifest is of another cache',
    expected: digest,
    got: manifest.digest,
  });
}

/** A push brings no other; a manifest that says so came by other ways. */
function requireComplete(found: RemoteManifest, where: string): RemoteManifest {
  const { complete, rows } = found.manifest;
  if (complete) return found;
  throw new StillhouseError({
    code: 'CACHE_INCOMPLETE',
    where,
    problem: `only ${rows.stored} of ${rows.planned} rows are there`,
    remedy: 'Push the cache again when it is finished',
  });
}

/**
 * The cache that a location means.
 * @throws StillhouseError REMOTE_CACHE_UNKNOWN naming those that are there, REMOTE_INVALID, CACHE_MANIFEST_INVALID,
 *   CACHE_INCOMPLETE
 */
export async function findCache(
  store: RemoteReader,
  { name }: RemoteLocation,
  context: ReadContext,
): Promise<RemoteManifest> {
  const digest = (await readRef(store, name, context)) ?? (isDigest(name) ? name : undefined);
  const found = digest === undefined ? undefined : await readRemoteManifest(store, digest, context);
  if (found !== undefined) return requireComplete(found, store.where);
  const names = await readIndex(store, context).then(
    ({ refs }) => Object.keys(refs),
    (error: unknown) => {
      if (isStillhouseError(error, 'REMOTE_NOT_FOUND')) return [];
      throw error;
    },
  );
  throw new StillhouseError({
    code: 'REMOTE_CACHE_UNKNOWN',
    where: store.where,
    problem: `there is no cache named ${name}`,
    expected: names.length === 0 ? 'any cache at all; the remote is empty' : `one of ${names.sort().join(', ')}`,
    remedy: 'See `stillhouse cache ls REMOTE`, and name a cache with REMOTE#NAME',
  });
}
