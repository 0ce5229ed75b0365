import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { pathExists, writeFileAtomically } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import type { CacheGroup } from '../format/description.ts';
import { type CacheManifest, listFiles } from '../format/manifest.ts';
import type { FileStamp } from './file-stamp.ts';

/** Beside the files of a pulled cache: which groups were left out, and what was hashed. Never part of the cache. */
export const PULLED_STATE_NAME = '.pulled.json';
/** Where a pull keeps what it has fetched until all is there. */
export const PULL_STAGING_NAME = '.pull';

/** A note of the machine that pulled. Whatever it gets wrong costs no more than hashing a file once more. */
export interface PulledState {
  /** Groups that were not asked for. */
  readonly omitted: readonly CacheGroup[];
  /** By path: the hash of a file and what it looked like then. */
  readonly files: Readonly<Record<string, FileStamp & { readonly sha256: string }>>;
}

/** @returns undefined if the cache was not pulled or the note cannot be read */
export async function readPulledState(folder: string): Promise<PulledState | undefined> {
  const text = await readFile(join(folder, PULLED_STATE_NAME), 'utf8').catch(() => undefined);
  if (text === undefined) return undefined;
  try {
    const { omitted, files } = JSON.parse(text) as Partial<PulledState>;
    return Array.isArray(omitted) && typeof files === 'object' && files !== null ? { omitted, files } : undefined;
  } catch {
    return undefined;
  }
}

/** @throws StillhouseError DISK_FULL, NOT_WRITABLE */
export async function writePulledState(folder: string, { omitted, files }: PulledState): Promise<void> {
  await writeFileAtomically(join(folder, PULLED_STATE_NAME), `${JSON.stringify({ omitted, files }, null, 1)}\n`);
}

/** The groups that a pull left out and that nothing has brought since: not one file of theirs is there. */
export async function listOmittedGroups(folder: string, manifest: CacheManifest): Promise<ReadonlySet<CacheGroup>> {
  const omitted = new Set<CacheGroup>((await readPulledState(folder))?.omitted);
  if (omitted.size === 0) return omitted;
  for (const { group, file } of listFiles(manifest)) {
    if (!omitted.has(group)) continue;
    if (await pathExists(join(folder, file.path))) omitted.delete(group);
  }
  return omitted;
}

export function refuseOmitted(folder: string, group: CacheGroup): never {
  throw new StillhouseError({
    code: 'CACHE_GROUP_ABSENT',
    where: folder,
    problem: `${group} was left out when the cache was pulled`,
    remedy: `Run \`stillhouse cache pull\` again with ${group} among --groups`,
  });
}

/** For what works on a cache as a whole. @throws StillhouseError CACHE_GROUP_ABSENT if a group was left out */
export async function requireAllGroups(folder: string, manifest: CacheManifest): Promise<void> {
  const [group] = await listOmittedGroups(folder, manifest);
  if (group !== undefined) refuseOmitted(folder, group);
}
