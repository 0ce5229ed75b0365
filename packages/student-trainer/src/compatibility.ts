import { StillhouseError } from '@stillhouse/errors';
import type { TeacherCache } from '@stillhouse/teacher-cache';
import { assertSameMeanings, hasTokenizer, openTokenizer } from '@stillhouse/tokenizer';

/**
 * Ids must mean the same to the teacher and to the student: an id is all that the cache says of a token.
 * @throws StillhouseError TOKENIZER_MISMATCH, STUDENT_TOKENIZER_MISSING
 */
export async function checkStudentTokenizer(cache: TeacherCache, studentFolder: string): Promise<void> {
  if (cache.tokenizerFolder === null) return;
  if (!(await hasTokenizer(studentFolder))) {
    throw new StillhouseError({
      code: 'STUDENT_TOKENIZER_MISSING',
      where: studentFolder,
      problem: "the student has no tokenizer to hold against the cache's",
      remedy: `Copy the files of ${cache.tokenizerFolder} into it if they are its own`,
    });
  }
  const [teacher, student] = [await openTokenizer(cache.tokenizerFolder), await openTokenizer(studentFolder)];
  assertSameMeanings(teacher, student, cache.tokenizerFolder, studentFolder);
}
