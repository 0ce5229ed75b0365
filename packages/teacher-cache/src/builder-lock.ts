import { open, readdir, readFile, rename, rm } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { explainWriteFailure } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';

export const LOCK_NAME = '.lock';

interface LockHolder {
  readonly pid: number;
  readonly host: string;
  /** When the process started, in ticks since boot: tells it from a later process of the same number. Linux only. */
  readonly started: string | null;
}

/** The 22nd field of /proc/PID/stat; the second, the command's name, may hold spaces and ends with the last bracket. */
async function readStartTime(pid: number): Promise<string | null> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
  return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? null;
}

async function isAlive(holder: LockHolder): Promise<boolean> {
  if (holder.host !== hostname()) return true;
  try {
    process.kill(holder.pid, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return false;
  }
  return holder.started === null || holder.started === (await readStartTime(holder.pid));
}

/** Who holds the lock; a lock without content is being written by a builder, or was when the machine stopped. */
async function readHolder(path: string): Promise<LockHolder | undefined> {
  for (let attempt = 0; attempt < 10; attempt++) {
    const text = await readFile(path, 'utf8').catch(() => '');
    try {
      return JSON.parse(text) as LockHolder;
    } catch {
      await sleep(50);
    }
  }
  return undefined;
}

/**
 * Takes the lock of a cache folder, so that only one builder writes there. The lock of a process that has ended on
 * this machine is taken over.
 * @returns a function that gives the lock back
 * @throws StillhouseError CACHE_IN_USE, DISK_FULL, NOT_WRITABLE
 */
export async function lockForBuilding(folder: string): Promise<() => Promise<void>> {
  const path = join(folder, LOCK_NAME);
  const own: LockHolder = { pid: process.pid, host: hostname(), started: await readStartTime(process.pid) };
  for (;;) {
    try {
      const handle = await open(path, 'wx');
      try {
        await handle.writeFile(JSON.stringify(own));
      } finally {
        await handle.close();
      }
      for (const name of await readdir(folder)) {
        if (name.startsWith(`${LOCK_NAME}-`)) await rm(join(folder, name), { force: true });
      }
      return () => rm(path, { force: true });
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== 'EEXIST') throw explainWriteFailure(path, cause);
    }
    const holder = await readHolder(path);
    if (holder !== undefined && (await isAlive(holder))) {
      throw new StillhouseError({
        code: 'CACHE_IN_USE',
        where: folder,
        problem: `another builder is writing this cache: process ${holder.pid} on ${holder.host}`,
        remedy: `Wait for it, or delete ${path} if no such process runs there`,
      });
    }
    // Of several that find the stale lock only one can move it away; the others go round again.
    const stale = `${path}-${process.pid}`;
    await rename(path, stale).then(
      () => rm(stale, { force: true }),
      () => {},
    );
  }
}
