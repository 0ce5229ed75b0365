import { join } from 'node:path';
import { hashFile } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import {
  type CacheGroup,
  type CacheManifest,
  type ListedFile,
  listFiles,
  type PulledState,
  readStamp,
  sameStamp,
} from '@stillhouse/teacher-cache';
import { forEachConcurrently } from '../transfer/send-each.ts';

/** Always pulled: rows are needed for anything, and without the tokenizer a student's could not be compared. */
const ALWAYS: readonly CacheGroup[] = ['rows', 'tokenizer'];

export interface PullPlan {
  /** Files with the right content at their place. */
  readonly inPlace: readonly ListedFile[];
  /** Contents to bring, each with the places it belongs to and a place on this machine that has it already, if any. */
  readonly wanted: readonly WantedContent[];
  readonly omitted: readonly CacheGroup[];
}

export interface WantedContent {
  readonly file: ListedFile;
  readonly paths: readonly string[];
  readonly localCopy: string | undefined;
}

/** @throws StillhouseError PULL_GROUP_UNKNOWN */
export function chooseGroups(
  manifest: CacheManifest,
  asked: readonly string[] | undefined,
  where: string,
): ReadonlySet<CacheGroup> {
  const all = new Set([...listFiles(manifest)].map(({ group }) => group));
  if (asked === undefined) return all;
  const unknown = asked.find((group) => !all.has(group as CacheGroup));
  if (unknown !== undefined) {
    throw new StillhouseError({
      code: 'PULL_GROUP_UNKNOWN',
      where,
      problem: `the cache has no group ${unknown}`,
      expected: `some of ${[...all].join(', ')}`,
      remedy: 'See `stillhouse cache ls REMOTE`',
    });
  }
  return new Set([...(asked as readonly CacheGroup[]), ...ALWAYS.filter((group) => all.has(group))]);
}

/**
 * What is here already and what must be brought. Files here are hashed unless a former pull has, and they are
 * unchanged.
 */
export async function planPull(
  folder: string,
  { manifest, groups }: { readonly manifest: CacheManifest; readonly groups: ReadonlySet<CacheGroup> },
  former: { readonly manifest: CacheManifest | undefined; readonly state: PulledState | undefined },
  signal: AbortSignal | undefined,
): Promise<PullPlan> {
  const isRight = async ({ path, sizeBytes, sha256 }: ListedFile): Promise<boolean> => {
    const stamp = await readStamp(join(folder, path));
    if (stamp?.sizeBytes !== sizeBytes) return false;
    const known = former.state?.files[path];
    if (known !== undefined && sameStamp(known, stamp)) return known.sha256 === sha256;
    return (await hashFile(join(folder, path))).sha256 === sha256;
  };
  const right = new Set<string>();
  const listed = [...listFiles(manifest)];
  await forEachConcurrently(listed, 2, signal, async ({ file }) => {
    if (await isRight(file)) right.add(file.path);
  });
  // What is here of a group that was not asked for stays, if the group is whole.
  const omitted = new Set(
    listed.filter(({ group, file }) => !groups.has(group) && !right.has(file.path)).map(({ group }) => group),
  );
  const kept = listed.filter(({ group }) => !omitted.has(group)).map(({ file }) => file);
  const places = new Map<string, ListedFile[]>();
  for (const file of kept) {
    if (!right.has(file.path)) places.set(file.sha256, [...(places.get(file.sha256) ?? []), file]);
  }
  // The same content under another path: of this manifest, or of the one that is here now.
  const copies = new Map(kept.filter(({ path }) => right.has(path)).map((file) => [file.sha256, file.path]));
  for (const { file } of former.manifest === undefined ? [] : listFiles(former.manifest)) {
    if (places.has(file.sha256) && !copies.has(file.sha256) && (await isRight(file)))
      copies.set(file.sha256, file.path);
  }
  return {
    inPlace: kept.filter(({ path }) => right.has(path)),
    wanted: [...places].map(([sha256, files]) => ({
      file: files[0]!,
      paths: files.map(({ path }) => path),
      localCopy: copies.get(sha256),
    })),
    omitted: [...omitted],
  };
}
