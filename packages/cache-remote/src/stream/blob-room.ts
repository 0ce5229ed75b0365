import { readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { blobKey } from '../layout/remote-layout.ts';

/** Where a folder has the content with a hash. */
export const placeOf = (folder: string, sha256: string) => join(folder, blobKey(sha256));

/** Which contents this process uses, and which it used last. */
export interface BlobUses {
  /** @returns what ends the use */
  begin(sha256: string): () => void;
  isUsed(sha256: string): boolean;
  /** When it was used, by a clock of this process; undefined if it was not. */
  lastUse(sha256: string): number | undefined;
}

export function trackUses(): BlobUses {
  const users = new Map<string, number>();
  const lastUse = new Map<string, number>();
  let clock = 0;
  return {
    begin: (sha256) => {
      users.set(sha256, (users.get(sha256) ?? 0) + 1);
      return () => {
        lastUse.set(sha256, ++clock);
        const left = users.get(sha256)! - 1;
        if (left > 0) users.set(sha256, left);
        else users.delete(sha256);
      };
    },
    isUsed: (sha256) => users.has(sha256),
    lastUse: (sha256) => lastUse.get(sha256),
  };
}

/** The bytes of a folder of contents: what is there and what is being fetched keep within a bound. */
export interface BlobRoom {
  /** What is being fetched counts in full. */
  usedBytes(): Promise<number>;
  /** Takes the oldest contents away until so much more fits. @returns what gives the room back */
  reserve(sizeBytes: number): Promise<() => void>;
}

/** Between two looks at whether a file that was in use is idle. */
const WAIT_MS = 20;

/** @param by.closeIdle closes one file that is open but not read from; false if there is none */
export function openBlobRoom(
  folder: string,
  limitBytes: number,
  by: { readonly uses: BlobUses; readonly closeIdle: () => Promise<boolean> },
): BlobRoom {
  let reservedBytes = 0;
  let turn: Promise<unknown> = Promise.resolve();

  const usedBytes = async () => {
    // Before the folder is looked at: a file that arrives in between counts twice rather than not at all.
    const expected = reservedBytes;
    return (await listBlobs(folder, by.uses)).reduce((sum, { sizeBytes }) => sum + sizeBytes, expected);
  };

  const makeRoom = async (sizeBytes: number) => {
    for (;;) {
      const excess = (await usedBytes()) + sizeBytes - limitBytes;
      if (excess <= 0) break;
      const freed = await removeOldest(folder, by.uses, excess);
      if (freed === 0 && !(await by.closeIdle())) await sleep(WAIT_MS);
    }
    reservedBytes += sizeBytes;
  };

  return {
    usedBytes,
    reserve: async (sizeBytes) => {
      // One at a time makes room, or two would count on the same bytes.
      const made = turn.then(() => makeRoom(sizeBytes));
      turn = made.catch(() => {});
      await made;
      return () => {
        reservedBytes -= sizeBytes;
      };
    },
  };
}

interface StoredBlob {
  readonly sha256: string;
  readonly sizeBytes: number;
  readonly usedAt: number;
}

async function listBlobs(folder: string, uses: BlobUses): Promise<readonly StoredBlob[]> {
  const names = await readdir(join(folder, 'blobs', 'sha256'), { recursive: true }).catch(() => []);
  const found: StoredBlob[] = [];
  for (const name of names) {
    const sha256 = name.slice(-64);
    if (!/^[0-9a-f]{64}$/.test(sha256)) continue;
    const entry = await stat(placeOf(folder, sha256)).catch(() => undefined);
    if (!entry?.isFile()) continue;
    // What earlier processes used comes before what this one did.
    const usedAt = uses.lastUse(sha256) ?? entry.atimeMs - Number.MAX_SAFE_INTEGER;
    found.push({ sha256, sizeBytes: entry.size, usedAt });
  }
  return found;
}

/** @returns how many contents that nobody uses are gone, of `excess` bytes if there are as many */
async function removeOldest(folder: string, uses: BlobUses, excess: number): Promise<number> {
  const idle = (await listBlobs(folder, uses)).filter(({ sha256 }) => !uses.isUsed(sha256));
  let [freed, freedBytes] = [0, 0];
  for (const { sha256, sizeBytes } of idle.sort((a, b) => a.usedAt - b.usedAt)) {
    if (freedBytes >= excess) break;
    // On some systems a file that another process reads cannot be removed.
    const isGone = await rm(placeOf(folder, sha256), { force: true }).then(
      () => true,
      () => false,
    );
    if (!isGone) continue;
    freed++;
    freedBytes += sizeBytes;
  }
  return freed;
}
