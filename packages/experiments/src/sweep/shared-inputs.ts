import { openCacheAt } from '@stillhouse/cache-remote';
import type { SharedInputs } from '@stillhouse/student-trainer';
import type { TeacherCache } from '@stillhouse/teacher-cache';

/**
 * Does work whose many runs read the same caches and students: each cache is opened once and its files are verified
 * once, each student's weights are looked through once.
 */
export async function shareInputs<Result>(work: (shared: Required<SharedInputs>) => Promise<Result>): Promise<Result> {
  const opened = new Map<string, Promise<TeacherCache>>();
  const openCache = async (location: string): Promise<TeacherCache> => {
    const opening = opened.get(location) ?? openCacheAt(location);
    opened.set(location, opening);
    try {
      return { ...(await opening), close: async () => {} };
    } catch (error) {
      opened.delete(location);
      throw error;
    }
  };
  try {
    return await work({ openCache, finiteStudents: new Set() });
  } finally {
    for (const opening of opened.values()) await (await opening).close();
  }
}
