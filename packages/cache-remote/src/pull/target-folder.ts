import { lstat, readdir, statfs } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { StillhouseError } from '@stillhouse/errors';
import {
  type CacheManifest,
  listFiles,
  MANIFEST_NAME,
  PULL_STAGING_NAME,
  PULLED_STATE_NAME,
} from '@stillhouse/teacher-cache';

const kindOf = (path: string) =>
  lstat(path).then(
    (entry) => (entry.isSymbolicLink() ? 'link' : entry.isDirectory() ? 'folder' : entry.isFile() ? 'file' : 'other'),
    (error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT' || error.code === 'ENOTDIR') return 'nothing';
      throw error;
    },
  );

/**
 * Refuses a target in which a file would land elsewhere or on something that is no file: every folder must be a real
 * folder and every file a real file, or be absent. The target itself may be reached through a link.
 * @throws StillhouseError PULL_TARGET_UNSAFE
 */
export async function refuseUnsafeTarget(folder: string, manifest: CacheManifest): Promise<void> {
  const files = [MANIFEST_NAME, PULLED_STATE_NAME, ...[...listFiles(manifest)].map(({ file }) => file.path)];
  const folders = new Set([PULL_STAGING_NAME, ...files.map(dirname).filter((parent) => parent !== '.')]);
  const refuse = (path: string, expected: string, got: string): never => {
    throw new StillhouseError({
      code: 'PULL_TARGET_UNSAFE',
      where: join(folder, path),
      problem: 'nothing is written where a link or something that is no file stands',
      expected: `${expected} or nothing`,
      got: got === 'link' ? 'a link' : `a ${got}`,
      remedy: 'Remove it, or pull into another folder',
    });
  };
  for (const path of folders) {
    const kind = await kindOf(join(folder, path));
    if (kind !== 'folder' && kind !== 'nothing') refuse(path, 'a folder', kind);
  }
  for (const path of files) {
    const kind = await kindOf(join(folder, path));
    if (kind !== 'file' && kind !== 'nothing') refuse(path, 'a file', kind);
  }
}

/**
 * @throws StillhouseError PULL_TARGET_OCCUPIED if there is something in the folder that is neither a cache nor a pull
 */
export async function refuseForeignTarget(folder: string): Promise<void> {
  const names = await readdir(folder).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return [];
    if (error.code === 'ENOTDIR') return ['a file'];
    throw error;
  });
  const known = new Set([PULL_STAGING_NAME, PULLED_STATE_NAME, '.lock']);
  const foreign = names.filter((name) => !known.has(name));
  if (foreign.length === 0 || names.includes(MANIFEST_NAME)) return;
  throw new StillhouseError({
    code: 'PULL_TARGET_OCCUPIED',
    where: folder,
    problem: 'this is not a teacher cache, and it is not empty',
    got: foreign.slice(0, 3).join(', '),
    remedy: 'Choose another folder',
  });
}

/** @throws StillhouseError PULL_TOO_LARGE if so many bytes do not fit on the disk of `folder` */
export async function refuseWithoutRoom(folder: string, neededBytes: number): Promise<void> {
  let place = resolve(folder);
  let room: { readonly bavail: number; readonly bsize: number } | undefined;
  while (room === undefined) {
    room = await statfs(place).catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT' || error.code === 'ENOTDIR') return undefined;
      throw error;
    });
    if (room === undefined) {
      if (dirname(place) === place) return;
      place = dirname(place);
    }
  }
  const freeBytes = room.bavail * room.bsize;
  if (neededBytes <= freeBytes) return;
  throw new StillhouseError({
    code: 'PULL_TOO_LARGE',
    where: folder,
    problem: 'the disk has less room than the files take',
    expected: `at most ${freeBytes} bytes`,
    got: `${neededBytes} bytes`,
    remedy: 'Free space, choose another place, or pull fewer --groups',
  });
}
