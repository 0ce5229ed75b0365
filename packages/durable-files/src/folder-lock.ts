import { randomUUID } from 'node:crypto';
import { type FileHandle, link, open, readdir, readFile, rename, rm } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { StillhouseError } from '@stillhouse/errors';
import { explainWriteFailure } from './write-failure.ts';

/** How often a holder says that it is alive, and how long another machine waits for that before it takes over. */
const BEAT_MS = 10_000;
const SILENCE_MS = 90_000;
const SETTLE_MS = 250;
/** Width of the counter, so that it is written in place. */
const BEAT_DIGITS = 12;

interface LockHolder {
  readonly pid: number;
  readonly host: string;
  /** When the process started, in ticks since boot: tells it from a later process of the same number. Linux only. */
  readonly started: string | null;
  /** Tells this lock from any other. */
  readonly token?: string;
  /** Counts while the holder lives; locks of older versions have none. */
  readonly beat?: string;
}

/** What is locked, in the words of whoever locks it. */
export interface LockWords {
  /** Of the error that refuses a second holder, and of the one that a holder gets whose lock is gone. */
  readonly inUseCode: string;
  readonly lostCode: string;
  /**
   * What a second holder is told, before the process that holds the lock is named: `another builder is writing this
   * cache`.
   */
  readonly inUse: string;
  /** What has happened where a lock is gone: `another builder has taken this cache over`. */
  readonly lost: string;
}

/** A lock that is held. */
export interface FolderLock {
  /** @throws StillhouseError with `lostCode` if another has taken it over, believing this process dead */
  requireHeld(): Promise<void>;
  release(): Promise<void>;
}

export interface LockTimes {
  readonly beatMs?: number;
  readonly silenceMs?: number;
}

/** The 22nd field of /proc/PID/stat; the second, the command's name, may hold spaces and ends with the last bracket. */
async function readStartTime(pid: number): Promise<string | null> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
  return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? null;
}

/** Of a process on this machine the system knows; one on another must let its lock beat. */
async function isAlive(path: string, holder: LockHolder, silenceMs: number): Promise<boolean> {
  if (holder.host !== hostname()) return holder.beat === undefined || isBeating(path, holder, silenceMs);
  try {
    process.kill(holder.pid, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return false;
  }
  return holder.started === null || holder.started === (await readStartTime(holder.pid));
}

/** Clocks of two machines are never compared: what counts is whether the lock changes while this one watches. */
async function isBeating(path: string, { token, beat }: LockHolder, silenceMs: number): Promise<boolean> {
  const end = performance.now() + silenceMs;
  while (performance.now() < end) {
    await sleep(Math.min(1000, silenceMs / 10));
    const now = await readHolder(path);
    // Given back or taken by another: the next round of the caller sees which.
    if (now === undefined || now.token !== token) return false;
    if (now.beat !== beat) return true;
  }
  return false;
}

/** Who holds the lock; a lock without content is being written by its holder, or was when the machine stopped. */
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
 * Takes a lock of a folder, so that only one process works there. The lock of a process that has ended on
 * this machine is taken over; one of another machine when it has not changed for 90 s. No call here relies on more than
 * exclusive creation and rename, which network file systems have too.
 * @param name of the lock's file
 * @throws StillhouseError `inUseCode`, DISK_FULL, NOT_WRITABLE
 */
export async function lockFolder(
  folder: string,
  name: string,
  words: LockWords,
  times: LockTimes = {},
): Promise<FolderLock> {
  const { beatMs = BEAT_MS, silenceMs = SILENCE_MS } = times;
  const path = join(folder, name);
  const own = { pid: process.pid, host: hostname(), started: await readStartTime(process.pid), token: randomUUID() };
  for (let attempt = 0; ; attempt++) {
    try {
      const handle = await open(path, 'wx');
      try {
        await writeHolder(handle, own, 0);
      } catch (error) {
        await handle.close();
        await rm(path, { force: true });
        throw error;
      }
      await removeStale(folder, name);
      const lock = keepBeating({ path, handle, own }, beatMs, words);
      if (attempt === 0 || (await isStillHeld(lock))) return lock;
      await lock.release();
      continue;
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== 'EEXIST') throw explainWriteFailure(path, cause);
    }
    const holder = await readHolder(path);
    if (holder !== undefined && (await isAlive(path, holder, silenceMs))) {
      throw new StillhouseError({
        code: words.inUseCode,
        where: folder,
        problem: `${words.inUse}: process ${holder.pid} on ${holder.host}`,
        remedy: `Wait for it, or delete ${path} if no such process runs there`,
      });
    }
    await moveAway(path, holder);
  }
}

/** Of several that find a dead holder's lock one moves it away; whoever then moves a new one puts it back. */
async function moveAway(path: string, dead: LockHolder | undefined): Promise<void> {
  const stale = `${path}-${randomUUID()}`;
  const isMoved = await rename(path, stale).then(
    () => true,
    () => false,
  );
  if (!isMoved) return;
  const moved = await readFile(stale, 'utf8').catch(() => '');
  if (dead !== undefined && !moved.includes(dead.token ?? String(dead.pid))) await link(stale, path).catch(() => {});
  await rm(stale, { force: true });
}

/** After a take-over: others that found the same dead lock may still move this one, for a moment. */
async function isStillHeld(lock: FolderLock): Promise<boolean> {
  await sleep(SETTLE_MS);
  return lock.requireHeld().then(
    () => true,
    () => false,
  );
}

async function writeHolder(handle: FileHandle, own: LockHolder, beat: number): Promise<void> {
  const bytes = Buffer.from(JSON.stringify({ ...own, beat: String(beat).padStart(BEAT_DIGITS, '0') }));
  await handle.write(bytes, 0, bytes.length, 0);
  await handle.datasync();
}

async function removeStale(folder: string, name: string): Promise<void> {
  for (const entry of await readdir(folder)) {
    if (entry.startsWith(`${name}-`)) await rm(join(folder, entry), { force: true });
  }
}

/** A lock's file that this process has made, and still has open. */
interface OwnLock {
  readonly path: string;
  readonly handle: FileHandle;
  readonly own: LockHolder;
}

function keepBeating({ path, handle, own }: OwnLock, beatMs: number, words: LockWords): FolderLock {
  let beat = 0;
  let beating: Promise<void> = Promise.resolve();
  // Into the file that was created, not to the path: a lock that was taken over is never written to.
  const timer = setInterval(() => {
    beating = beating.then(() => writeHolder(handle, own, ++beat)).catch(() => {});
  }, beatMs);
  timer.unref();
  let isHeld = true;
  const isOwn = async () => (await readHolder(path))?.token === own.token;
  return {
    requireHeld: async () => {
      if (await isOwn()) return;
      throw new StillhouseError({
        code: words.lostCode,
        where: path,
        problem: `${words.lost}, or the lock was deleted`,
        remedy: 'Run the command again: it goes on where the other stops',
      });
    },
    release: async () => {
      if (!isHeld) return;
      isHeld = false;
      clearInterval(timer);
      await beating;
      await handle.close();
      if (await isOwn()) await rm(path, { force: true });
    },
  };
}
