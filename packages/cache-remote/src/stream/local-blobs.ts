import { readdir, rename, rm } from 'node:fs/promises';
import { hostname } from 'node:os';
import { dirname, join } from 'node:path';
import { hashFile, makeFolder } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import type { FileStamp, ListedFile, LocalFile } from '@stillhouse/teacher-cache';
import { readStamp, sameStamp } from '@stillhouse/teacher-cache';
import { openBlobRoom, placeOf, trackUses } from './blob-room.ts';

/** Contents of remote files in a folder of this machine, by hash; never more than a bound. */
export interface LocalBlobs {
  /**
   * The content of a file, fetched if it is not here; what was used longest ago makes room. It stays until released.
   * @throws StillhouseError STREAM_FILE_TOO_LARGE, and those of fetching
   */
  acquire(file: ListedFile): Promise<LocalFile>;
  /** Bytes in the folder now, what is being fetched counted in full. */
  usedBytes(): Promise<number>;
}

/**
 * Opens a folder of contents. Several processes may share one: each looks at the folder as it is, and a file that
 * another one takes away is fetched again.
 * @param fetchInto brings the content of a file, whole and verified, to a path
 * @param closeIdle closes one file that is open but not read from; false if there is none
 */
export function openLocalBlobs(
  folder: string,
  limitBytes: number,
  fetchInto: (file: ListedFile, path: string) => Promise<void>,
  closeIdle: () => Promise<boolean>,
): LocalBlobs {
  const uses = trackUses();
  const room = openBlobRoom(folder, limitBytes, { uses, closeIdle });
  const hashed = new Map<string, FileStamp>();
  const pending = new Map<string, Promise<void>>();

  const fetch = async (file: ListedFile) => {
    const target = placeOf(folder, file.sha256);
    const partial = `${target}.${hostname()}.${process.pid}.partial`;
    await makeFolder(dirname(target));
    const giveBack = await room.reserve(file.sizeBytes);
    try {
      await fetchInto(file, partial);
      await rename(partial, target);
    } finally {
      giveBack();
    }
    const stamp = await readStamp(target);
    if (stamp !== undefined) hashed.set(file.sha256, stamp);
  };

  /** Whether the content is here; hashed at the first look, by size and times afterwards. */
  const isHere = async ({ sha256, sizeBytes }: ListedFile): Promise<boolean> => {
    const path = placeOf(folder, sha256);
    const stamp = await readStamp(path);
    if (stamp?.sizeBytes !== sizeBytes) return false;
    if (sameStamp(hashed.get(sha256), stamp)) return true;
    const found = await hashFile(path).catch(() => undefined);
    if (found?.sha256 === sha256) {
      hashed.set(sha256, stamp);
      return true;
    }
    await rm(path, { force: true });
    return false;
  };

  const bring = async (file: ListedFile) => {
    if (!(await isHere(file))) await fetch(file);
  };

  return {
    usedBytes: room.usedBytes,
    acquire: async (file) => {
      const { sha256 } = file;
      refuseAboveBound(file, limitBytes);
      const release = uses.begin(sha256);
      try {
        let bringing = pending.get(sha256);
        if (bringing === undefined) {
          bringing = bring(file).finally(() => pending.delete(sha256));
          pending.set(sha256, bringing);
        }
        await bringing;
      } catch (error) {
        release();
        throw error;
      }
      return { path: placeOf(folder, sha256), release };
    },
  };
}

function refuseAboveBound({ path, sizeBytes }: ListedFile, limitBytes: number): void {
  if (sizeBytes <= limitBytes) return;
  throw new StillhouseError({
    code: 'STREAM_FILE_TOO_LARGE',
    where: path,
    problem: 'one file of the cache is larger than what may be kept on this machine',
    expected: `at most ${limitBytes} bytes`,
    got: `${sizeBytes} bytes`,
    remedy: 'Allow more with STILLHOUSE_CACHE_BYTES, or pull the cache',
  });
}

/** Removes what processes of this machine that have ended left unfinished. */
export async function removeAbandoned(folder: string): Promise<void> {
  const names = await readdir(join(folder, 'blobs', 'sha256'), { recursive: true }).catch(() => []);
  for (const name of names) {
    const [, host, pid] = /[0-9a-f]{64}\.(.+)\.(\d+)\.partial$/.exec(name) ?? [];
    if (host !== hostname() || isAlive(Number(pid))) continue;
    await rm(join(folder, 'blobs', 'sha256', name), { force: true });
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ESRCH';
  }
}
