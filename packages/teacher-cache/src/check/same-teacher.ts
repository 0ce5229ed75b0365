import { StillhouseError } from '@stillhouse/errors';
import { type TeacherIdentity, teacherSha256, type WeightsIdentity } from '../format/teacher-identity.ts';

/**
 * A folder of weights that stands in for the teacher of a cache must be that teacher, by its digests; its folder may
 * have another name.
 * @param where the model's folder
 * @throws StillhouseError TEACHER_MISMATCH
 */
export function requireSameTeacher(
  found: Pick<WeightsIdentity, 'weightsSha256' | 'configSha256'>,
  known: TeacherIdentity,
  where: string,
): asserts known is WeightsIdentity {
  for (const key of ['weightsSha256', 'configSha256'] as const) {
    if (known.kind === 'weights' && found[key] === known[key]) continue;
    throw new StillhouseError({
      code: 'TEACHER_MISMATCH',
      where,
      problem: `this is not the teacher of the cache, ${known.name}`,
      expected:
        known.kind === 'weights' ? `${key} ${known[key]}` : `a ${known.kind} ${teacherSha256(known) ?? known.name}`,
      got: found[key],
      remedy: 'Name the folder of that teacher',
    });
  }
}
