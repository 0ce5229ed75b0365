import { type FolderLock, type LockTimes, lockFolder } from '@stillhouse/durable-files';

export const LOCK_NAME = '.lock';

/**
 * Takes a lock of a cache folder, so that only one builder writes there.
 * @throws StillhouseError CACHE_IN_USE, DISK_FULL, NOT_WRITABLE; of the lock, CACHE_LOCK_LOST
 */
export function lockForBuilding(folder: string, name = LOCK_NAME, times: LockTimes = {}): Promise<FolderLock> {
  return lockFolder(
    folder,
    name,
    {
      inUseCode: 'CACHE_IN_USE',
      inUse: 'another builder is writing this cache',
      lostCode: 'CACHE_LOCK_LOST',
      lost: 'another builder has taken this cache over',
    },
    times,
  );
}
