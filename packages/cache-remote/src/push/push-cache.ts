import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { hashFile } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import {
  type CacheManifest,
  type ListedFile,
  listFiles,
  MANIFEST_NAME,
  parseManifest,
  readManifest,
} from '@stillhouse/teacher-cache';
import { parseLocation } from '../layout/location.ts';
import {
  blobKey,
  encodeIndex,
  encodeRef,
  INDEX_KEY,
  isDigest,
  manifestKey,
  readIndex,
  readRef,
  refKey,
} from '../layout/remote-layout.ts';
import { refuseChanged } from '../stores/local-content.ts';
import { openWriter } from '../stores/open-store.ts';
import type { BlobToSend, RemoteWriter, SendOptions } from '../stores/remote-store.ts';
import { forEachConcurrently } from '../transfer/send-each.ts';
import { resolveTransfer, type TransferOptions } from '../transfer/transfer-options.ts';

export interface PushOptions extends TransferOptions {
  /** Send files that are there already too, to replace ones that went bad. Default false. */
  readonly resend?: boolean;
}

export interface PushResult {
  readonly remote: string;
  readonly name: string;
  readonly digest: string;
  /** The cache that the name stood for before; null if it is new. That one can still be pulled by its digest. */
  readonly formerDigest: string | null;
  readonly filesSent: number;
  readonly bytesSent: number;
  /** Files that the remote had already. */
  readonly filesPresent: number;
  readonly bytesPresent: number;
}

/**
 * Brings a complete cache to a remote: first the contents that the remote lacks, then the manifest, then the name. A
 * push that is broken off is not seen, and the next one sends only the rest. Files of groups that were never pulled may
 * be missing here if the remote has them.
 * @param remote `PLACE[#NAME]`
 * @throws StillhouseError REMOTE_LOCATION_INVALID, REMOTE_READ_ONLY, REMOTE_ACCESS_DENIED, REMOTE_TRANSFER_FAILED,
 *   CACHE_INCOMPLETE, CACHE_FILE_MISSING, CACHE_FILE_DAMAGED, and those of reading a manifest
 */
export async function pushCache(folder: string, remote: string, options: PushOptions = {}): Promise<PushResult> {
  const location = parseLocation(remote);
  if (isDigest(location.name)) {
    throw new StillhouseError({
      code: 'REMOTE_LOCATION_INVALID',
      where: location.name,
      problem: 'a digest is no name to push to',
      expected: 'REMOTE#NAME with a name of your own',
    });
  }
  await readManifest(folder);
  const content = await readFile(join(folder, MANIFEST_NAME));
  const manifest = parseManifest(content.toString('utf8'), join(folder, MANIFEST_NAME));
  requireComplete(folder, manifest);
  const store = await openWriter(location);
  try {
    const { policy, signal, onProgress } = resolveTransfer(options);
    const blobs = listBlobs(folder, manifest);
    const present = await listPresent(store, blobs, { policy, signal, onSent: () => {}, onBytes: () => {} });
    const missing = options.resend === true ? await keepLocal(blobs) : blobs.filter(({ key }) => !present.has(key));
    const totalBytes = missing.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
    const progress = { files: 0, totalFiles: missing.length, bytes: 0, totalBytes };
    const send: SendOptions = {
      policy,
      signal,
      onSent: () => {
        progress.files++;
        onProgress?.({ ...progress });
      },
      onBytes: (count) => {
        progress.bytes += count;
        onProgress?.({ ...progress });
      },
    };
    onProgress?.({ ...progress });
    await checkLocal(missing, send);
    await store.send(missing, send);
    await requireSent(store, missing, send);
    const formerDigest = (await readRef(store, location.name, send)) ?? null;
    await publish(store, { name: location.name, digest: manifest.digest, content }, send);
    const presentBlobs = blobs.filter((blob) => !missing.includes(blob));
    return {
      remote: location.text,
      name: location.name,
      digest: manifest.digest,
      formerDigest,
      filesSent: missing.length,
      bytesSent: totalBytes,
      filesPresent: presentBlobs.length,
      bytesPresent: presentBlobs.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
    };
  } finally {
    store.close();
  }
}

function requireComplete(folder: string, { complete, rows }: CacheManifest): void {
  if (complete) return;
  throw new StillhouseError({
    code: 'CACHE_INCOMPLETE',
    where: folder,
    problem: `only ${rows.stored} of ${rows.planned} rows are there`,
    remedy: 'Finish the build, then push',
  });
}

/** What the manifest lists, each content once. */
function listBlobs(folder: string, manifest: CacheManifest): readonly BlobToSend[] {
  const blobs = new Map<string, BlobToSend>();
  for (const { file } of listFiles(manifest)) {
    const { sha256, sizeBytes, path } = file satisfies ListedFile;
    const key = blobKey(sha256);
    blobs.set(key, { key, name: path, localPath: join(folder, path), sizeBytes, sha256 });
  }
  return [...blobs.values()];
}

/** Contents that are there in their full length; a shorter one was not put there by a push and is replaced. */
async function listPresent(
  store: RemoteWriter,
  blobs: readonly BlobToSend[],
  options: SendOptions,
): Promise<ReadonlySet<string>> {
  const sizes = await store.sizes(blobs, options);
  return new Set(blobs.filter(({ key, sizeBytes }) => sizes.get(key) === sizeBytes).map(({ key }) => key));
}

const isLocal = ({ localPath, sizeBytes }: BlobToSend) =>
  stat(localPath).then(
    ({ size }) => size === sizeBytes,
    () => false,
  );

async function keepLocal(blobs: readonly BlobToSend[]): Promise<readonly BlobToSend[]> {
  const kept: BlobToSend[] = [];
  for (const blob of blobs) if (await isLocal(blob)) kept.push(blob);
  return kept;
}

/** All that will be sent is hashed before the first byte goes out: a damaged cache changes nothing in the remote. */
async function checkLocal(blobs: readonly BlobToSend[], { signal }: SendOptions): Promise<void> {
  await forEachConcurrently(blobs, 2, signal, async (blob) => {
    if (!(await isLocal(blob))) {
      throw new StillhouseError({
        code: 'CACHE_FILE_MISSING',
        where: blob.localPath,
        problem: 'the file is neither here in its length nor in the remote',
        expected: `${blob.sizeBytes} bytes`,
        remedy: 'Pull the group it belongs to from where it is, then push again',
      });
    }
    refuseChanged(blob, (await hashFile(blob.localPath)).sha256);
  });
}

/** The manifest is written only when every file it names is there in its length. */
async function requireSent(store: RemoteWriter, blobs: readonly BlobToSend[], options: SendOptions): Promise<void> {
  const present = await listPresent(store, blobs, options);
  const lost = blobs.find(({ key }) => !present.has(key));
  if (lost === undefined) return;
  throw new StillhouseError({
    code: 'REMOTE_FILE_MISSING',
    where: `${store.where}, ${lost.name}`,
    problem: 'the remote took the file and does not have it',
    expected: `${lost.sizeBytes} bytes as ${lost.key}`,
    remedy: 'Push again; if it stays so, the storage loses data',
  });
}

async function publish(
  store: RemoteWriter,
  { name, digest, content }: { readonly name: string; readonly digest: string; readonly content: Uint8Array },
  options: SendOptions,
): Promise<void> {
  const { refs, caches } = await readIndex(store, options);
  const index = { refs: { ...refs, [name]: digest }, caches: [...new Set([...caches, digest])] };
  await store.publish(
    [
      { key: manifestKey(digest), content },
      { key: refKey(name), content: encodeRef(digest) },
      { key: INDEX_KEY, content: encodeIndex(index) },
    ],
    `cache ${name} ${digest.slice(0, 12)}`,
    options,
  );
}
