import { openCacheAt } from '@stillhouse/cache-remote';
import type { TeacherCache } from '@stillhouse/teacher-cache';

/** Caches that many runs of this process read: each is opened once, and its files are verified once. */
export interface CacheShare {
  /** Closing what this gives closes nothing. */
  openCache(location: string): Promise<TeacherCache>;
  close(): Promise<void>;
}

export function shareCaches(): CacheShare {
  const opened = new Map<string, Promise<TeacherCache>>();
  return {
    openCache: async (location) => {
      const opening = opened.get(location) ?? openCacheAt(location);
      opened.set(location, opening);
      try {
        return { ...(await opening), close: async () => {} };
      } catch (error) {
        opened.delete(location);
        throw error;
      }
    },
    close: async () => {
      for (const opening of opened.values()) await (await opening).close();
    },
  };
}
