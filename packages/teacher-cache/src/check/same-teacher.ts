import { StillhouseError } from '@stillhouse/errors';
import type { TeacherIdentity } from '../format/description.ts';

/**
 * A model that stands in for the teacher of a cache must be that teacher, by its digests; its folder may have another name.
 * @param where the model's folder
 * @throws StillhouseError TEACHER_MISMATCH
 */
export function requireSameTeacher(
  found: Pick<TeacherIdentity, 'weightsSha256' | 'configSha256'>,
  known: TeacherIdentity,
  where: string,
): void {
  for (const key of ['weightsSha256', 'configSha256'] as const) {
    if (found[key] === known[key]) continue;
    throw new StillhouseError({
      code: 'TEACHER_MISMATCH',
      where,
      problem: `this is not the teacher of the cache, ${known.name}`,
      expected: `${key} ${known[key]}`,
      got: found[key],
      remedy: 'Name the folder of that teacher',
    });
  }
}
