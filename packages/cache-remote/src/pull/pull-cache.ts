import { copyFile, rename, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { explainWriteFailure, makeFolder, syncDirectory, writeFileAtomically } from '@stillhouse/durable-files';
import { isStillhouseError, StillhouseError } from '@stillhouse/errors';
import {
  type CacheManifest,
  listFiles,
  lockForBuilding,
  MANIFEST_NAME,
  PULL_STAGING_NAME,
  type PulledState,
  readManifest,
  readPulledState,
  readStamp,
  writePulledState,
} from '@stillhouse/teacher-cache';
import { parseLocation } from '../layout/location.ts';
import { findCache, type ReadContext, readRemoteManifest } from '../layout/remote-layout.ts';
import { openReader } from '../stores/open-store.ts';
import type { RemoteReader } from '../stores/remote-store.ts';
import { downloadBlob } from '../transfer/download.ts';
import { forEachConcurrently } from '../transfer/send-each.ts';
import { resolveTransfer, type TransferOptions, type TransferProgress } from '../transfer/transfer-options.ts';
import { chooseGroups, type PullPlan, planPull, type WantedContent } from './pull-plan.ts';
import { refuseForeignTarget, refuseUnsafeTarget, refuseWithoutRoom } from './target-folder.ts';

export interface PullOptions extends TransferOptions {
  /** Groups to fetch, such as `topk`; all if not given. `rows` and `tokenizer` come always. */
  readonly groups?: readonly string[];
  /** Refuse a cache whose wanted files take more. No bound but the disk's if not given. */
  readonly maxBytes?: number;
}

export interface PullResult {
  readonly folder: string;
  readonly name: string;
  readonly digest: string;
  /** The cache that stood in the folder before; null if there was none. */
  readonly formerDigest: string | null;
  readonly groups: readonly string[];
  readonly omittedGroups: readonly string[];
  readonly filesFetched: number;
  readonly bytesFetched: number;
  /** Files whose content was here already. */
  readonly filesPresent: number;
}

/**
 * Brings a cache, or some groups of it, into a folder; fetches only contents that are not there. What was fetched waits
 * in `.pull` until all is there, so that the cache in the folder changes at once; a pull that was broken off goes on
 * there.
 * @param remote `PLACE[#NAME]`
 * @throws StillhouseError REMOTE_LOCATION_INVALID, REMOTE_CACHE_UNKNOWN, REMOTE_FILE_MISSING, REMOTE_FILE_DAMAGED,
 *   REMOTE_TRANSFER_FAILED, REMOTE_ACCESS_DENIED, CACHE_INCOMPLETE, PULL_GROUP_UNKNOWN, PULL_TARGET_OCCUPIED,
 *   PULL_TARGET_UNSAFE, PULL_WOULD_OVERWRITE, PULL_TOO_LARGE, CACHE_MANIFEST_INVALID, CACHE_IN_USE, DISK_FULL,
 *   NOT_WRITABLE
 */
export async function pullCache(remote: string, folder: string, options: PullOptions = {}): Promise<PullResult> {
  const location = parseLocation(remote);
  const { policy, signal, onProgress } = resolveTransfer(options);
  const context: ReadContext = { policy, signal };
  const store = await openReader(location);
  try {
    const { manifest, content } = await findCache(store, location, context);
    const groups = chooseGroups(manifest, options.groups, store.where);
    refuseAboveBound(manifest, groups, options.maxBytes, store.where);
    await refuseForeignTarget(folder);
    await refuseUnsafeTarget(folder, manifest);
    const former = await readFormer(folder, store, context);
    if (former !== undefined) await refuseUnsafeTarget(folder, former);
    const present = { manifest: former, state: await readPulledState(folder) };
    const plan = await planPull(folder, { manifest, groups }, present, signal);
    const neededBytes = plan.wanted.reduce((sum, { file, paths }) => sum + file.sizeBytes * paths.length, 0);
    await refuseWithoutRoom(folder, neededBytes - (await countStaged(folder, plan)));
    await makeFolder(folder);
    const lock = await lockForBuilding(folder);
    try {
      const fetched = await fetchAll(folder, plan, { store, context, onProgress });
      await lock.requireHeld();
      await publish(folder, plan, { manifest, former, content });
      return {
        folder,
        name: location.name,
        digest: manifest.digest,
        formerDigest: former?.digest ?? null,
        groups: [...new Set([...listFiles(manifest)].map(({ group }) => group))].filter(
          (group) => !plan.omitted.includes(group),
        ),
        omittedGroups: plan.omitted,
        ...fetched,
        filesPresent: plan.inPlace.length,
      };
    } finally {
      await lock.release();
    }
  } finally {
    store.close();
  }
}

function refuseAboveBound(
  manifest: CacheManifest,
  groups: ReadonlySet<string>,
  maxBytes: number | undefined,
  where: string,
): void {
  let sizeBytes = 0;
  for (const { group, file } of listFiles(manifest)) if (groups.has(group)) sizeBytes += file.sizeBytes;
  if (maxBytes === undefined || sizeBytes <= maxBytes) return;
  throw new StillhouseError({
    code: 'PULL_TOO_LARGE',
    where,
    problem: 'the files take more than was allowed',
    expected: `at most ${maxBytes} bytes`,
    got: `${sizeBytes} bytes`,
    remedy: 'Pull fewer --groups, or allow more',
  });
}

/** The cache that is in the folder; one that the remote does not have would be lost. */
async function readFormer(
  folder: string,
  store: RemoteReader,
  context: ReadContext,
): Promise<CacheManifest | undefined> {
  const former = await readManifest(folder).catch((error: unknown) => {
    if (isStillhouseError(error, 'CACHE_NOT_FOUND')) return undefined;
    throw error;
  });
  if (former === undefined) return undefined;
  if (former.complete && (await readRemoteManifest(store, former.digest, context)) !== undefined) return former;
  throw new StillhouseError({
    code: 'PULL_WOULD_OVERWRITE',
    where: folder,
    problem: former.complete
      ? 'there is a cache that the remote does not have'
      : 'there is a cache that is still being built',
    got: `digest ${former.digest}`,
    remedy: 'Push it first, or pull into another folder',
  });
}

const stagedPath = (folder: string, sha256: string) => join(folder, PULL_STAGING_NAME, sha256);

/** Bytes that a pull which was broken off has brought already. */
async function countStaged(folder: string, { wanted }: PullPlan): Promise<number> {
  let sizeBytes = 0;
  for (const { file } of wanted) sizeBytes += (await readStamp(stagedPath(folder, file.sha256)))?.sizeBytes ?? 0;
  return sizeBytes;
}

interface PullSource {
  readonly store: RemoteReader;
  readonly context: ReadContext;
  readonly onProgress: ((progress: TransferProgress) => void) | undefined;
}

async function fetchAll(
  folder: string,
  { wanted }: PullPlan,
  { store, context, onProgress }: PullSource,
): Promise<{ readonly filesFetched: number; readonly bytesFetched: number }> {
  await makeFolder(join(folder, PULL_STAGING_NAME));
  const totalBytes = wanted.reduce((sum, { file }) => sum + file.sizeBytes, 0);
  const progress = { files: 0, totalFiles: wanted.length, bytes: 0, totalBytes };
  onProgress?.({ ...progress });
  let filesFetched = 0;
  let bytesFetched = 0;
  await forEachConcurrently(wanted, context.policy.concurrency, context.signal, async ({ file, localCopy }, signal) => {
    const target = stagedPath(folder, file.sha256);
    if (localCopy !== undefined) {
      await copyFile(join(folder, localCopy), target).catch((cause: unknown) => {
        throw explainWriteFailure(target, cause);
      });
    } else {
      filesFetched++;
      bytesFetched += file.sizeBytes;
    }
    // A copy is hashed like a transfer that was broken off at its end.
    const onBytes = (count: number) => {
      progress.bytes += count;
      onProgress?.({ ...progress });
    };
    await downloadBlob(store, file, target, { policy: context.policy, signal, onBytes });
    progress.files++;
    onProgress?.({ ...progress });
  });
  return { filesFetched, bytesFetched };
}

interface PulledManifest {
  readonly manifest: CacheManifest;
  /** The bytes of `manifest`. */
  readonly content: Buffer;
  /** Of the cache that is in the folder. */
  readonly former: CacheManifest | undefined;
}

/**
 * Moves what was fetched to its places, then the note of this machine, then the manifest; then what is no longer listed
 * goes.
 */
async function publish(folder: string, plan: PullPlan, { manifest, former, content }: PulledManifest): Promise<void> {
  await refuseUnsafeTarget(folder, manifest);
  for (const one of plan.wanted) await moveIntoPlace(folder, one);
  const kept = new Set([...plan.inPlace.map(({ path }) => path), ...plan.wanted.flatMap(({ paths }) => paths)]);
  const files: Record<string, PulledState['files'][string]> = {};
  for (const { file } of listFiles(manifest)) {
    const stamp = kept.has(file.path) ? await readStamp(join(folder, file.path)) : undefined;
    if (stamp !== undefined) files[file.path] = { ...stamp, sha256: file.sha256 };
  }
  // Of a group that is left out nothing may stay, or the group would count as there.
  for (const { file } of listFiles(manifest)) {
    if (!kept.has(file.path)) await rm(join(folder, file.path), { force: true });
  }
  await writePulledState(folder, { omitted: plan.omitted, files });
  await writeFileAtomically(join(folder, MANIFEST_NAME), content);
  for (const { file } of former === undefined ? [] : listFiles(former)) {
    if (!kept.has(file.path)) await rm(join(folder, file.path), { force: true });
  }
  await rm(join(folder, PULL_STAGING_NAME), { recursive: true, force: true });
}

async function moveIntoPlace(folder: string, { file, paths }: WantedContent): Promise<void> {
  const staged = stagedPath(folder, file.sha256);
  for (const [i, path] of paths.entries()) {
    const target = join(folder, path);
    try {
      await makeFolder(dirname(target));
      if (i < paths.length - 1) {
        const copy = `${staged}.copy`;
        await copyFile(staged, copy);
        await rename(copy, target);
      } else {
        await rename(staged, target);
      }
      await syncDirectory(dirname(target));
    } catch (cause) {
      throw explainWriteFailure(target, cause);
    }
  }
}
