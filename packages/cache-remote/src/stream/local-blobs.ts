import { readdir, rename, rm, stat } from 'node:fs/promises';
import { hostname } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { hashFile, makeFolder } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import type { FileStamp, ListedFile, LocalFile } from '@stillhouse/teacher-cache';
import { readStamp, sameStamp } from '@stillhouse/teacher-cache';
import { blobKey } from '../layout/remote-layout.ts';

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

/** Between two looks at whether a file that was in use is idle. */
const WAIT_MS = 20;

/**
 * Opens a folder of contents. Several processes may share one: each looks at the folder as it is, and a file that another
 * one takes away is fetched again.
 * @param fetchInto brings the content of a file, whole and verified, to a path
 * @param closeIdle closes one file that is open but not read from; false if there is none
 */
export function openLocalBlobs(
  folder: string,
  limitBytes: number,
  fetchInto: (file: ListedFile, path: string) => Promise<void>,
  closeIdle: () => Promise<boolean>,
): LocalBlobs {
  const users = new Map<string, number>();
  const lastUse = new Map<string, number>();
  const hashed = new Map<string, FileStamp>();
  const pending = new Map<string, Promise<void>>();
  const reserved = new Map<string, number>();
  let clock = 0;
  let turn: Promise<void> = Promise.resolve();
  const place = (sha256: string) => join(folder, blobKey(sha256));

  const listBlobs = async () => {
    const names = await readdir(join(folder, 'blobs', 'sha256'), { recursive: true }).catch(() => []);
    const found: { readonly sha256: string; readonly sizeBytes: number; readonly usedAt: number }[] = [];
    for (const name of names) {
      const sha256 = name.slice(-64);
      if (!/^[0-9a-f]{64}$/.test(sha256)) continue;
      const entry = await stat(place(sha256)).catch(() => undefined);
      // What earlier processes used comes before what this one did.
      if (entry?.isFile()) {
        found.push({
          sha256,
          sizeBytes: entry.size,
          usedAt: lastUse.get(sha256) ?? entry.atimeMs - Number.MAX_SAFE_INTEGER,
        });
      }
    }
    return found;
  };

  const usedBytes = async () => {
    // Before the folder is looked at: a file that arrives in between counts twice rather than not at all.
    const expected = [...reserved.values()].reduce((sum, sizeBytes) => sum + sizeBytes, 0);
    return (await listBlobs()).reduce((sum, { sizeBytes }) => sum + sizeBytes, expected);
  };

  /** Takes the oldest contents away until so much more fits, then reserves it. */
  const makeRoom = async ({ sha256, sizeBytes }: ListedFile) => {
    for (;;) {
      let excess = (await usedBytes()) + sizeBytes - limitBytes;
      if (excess <= 0) break;
      const idle = (await listBlobs()).filter((blob) => !users.has(blob.sha256)).sort((a, b) => a.usedAt - b.usedAt);
      let freed = 0;
      for (const blob of idle) {
        if (excess <= 0) break;
        // On some systems a file that another process reads cannot be removed.
        const isGone = await rm(place(blob.sha256), { force: true }).then(
          () => true,
          () => false,
        );
        if (!isGone) continue;
        hashed.delete(blob.sha256);
        excess -= blob.sizeBytes;
        freed++;
      }
      if (freed === 0 && !(await closeIdle())) await sleep(WAIT_MS);
    }
    reserved.set(sha256, sizeBytes);
  };

  const fetch = async (file: ListedFile) => {
    const target = place(file.sha256);
    const partial = `${target}.${hostname()}.${process.pid}.partial`;
    await makeFolder(dirname(target));
    // One at a time makes room, or two would count on the same bytes.
    const before = turn;
    let done = () => {};
    turn = new Promise((resolve) => {
      done = resolve;
    });
    await before;
    try {
      await makeRoom(file);
    } finally {
      done();
    }
    try {
      await fetchInto(file, partial);
      await rename(partial, target);
    } finally {
      reserved.delete(file.sha256);
    }
    const stamp = await readStamp(target);
    if (stamp !== undefined) hashed.set(file.sha256, stamp);
  };

  /** Whether the content is here; hashed at the first look, by size and times afterwards. */
  const isHere = async ({ sha256, sizeBytes }: ListedFile): Promise<boolean> => {
    const path = place(sha256);
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
    usedBytes,
    acquire: async (file) => {
      const { sha256, sizeBytes } = file;
      if (sizeBytes > limitBytes) {
        throw new StillhouseError({
          code: 'STREAM_FILE_TOO_LARGE',
          where: file.path,
          problem: 'one file of the cache is larger than what may be kept on this machine',
          expected: `at most ${limitBytes} bytes`,
          got: `${sizeBytes} bytes`,
          remedy: 'Allow more with STILLHOUSE_CACHE_BYTES, or pull the cache',
        });
      }
      users.set(sha256, (users.get(sha256) ?? 0) + 1);
      const release = () => {
        lastUse.set(sha256, ++clock);
        const left = users.get(sha256)! - 1;
        if (left > 0) users.set(sha256, left);
        else users.delete(sha256);
      };
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
      return { path: place(sha256), release };
    },
  };
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
