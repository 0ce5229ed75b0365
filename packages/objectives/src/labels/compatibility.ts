import { StillhouseError } from '@stillhouse/errors';
import type { CacheDescription, TeacherCache } from '@stillhouse/teacher-cache';
import { assertSameMeanings, hasTokenizer, openTokenizer } from '@stillhouse/tokenizer';

/**
 * How many rows of the output matrices take part: all, or, where their numbers differ, the ids that really exist.
 * Rows beyond these are padding of either side.
 * @param vocabSize rows of the student's output matrix
 * @throws StillhouseError VOCABULARY_MISMATCH
 */
export function sharedVocabulary({ teacher, tokenizer }: CacheDescription, vocabSize: number, where: string): number {
  const real = tokenizer?.realVocabSize;
  const needed = real ?? teacher?.vocabSize ?? 0;
  const refuse = (problem: string, expected: string, remedy: string): never => {
    throw new StillhouseError({
      code: 'VOCABULARY_MISMATCH',
      where,
      problem,
      expected,
      got: String(vocabSize),
      remedy,
    });
  };
  if (vocabSize < needed) {
    refuse(
      'the cache has ids that the model does not know',
      `a model of at least ${needed} ids`,
      'Use a model with the same tokenizer as the teacher',
    );
  }
  if (teacher === null || teacher.vocabSize === vocabSize) return vocabSize;
  return (
    real ??
    refuse(
      'the vocabularies differ in size and the cache does not say which ids are real',
      String(teacher.vocabSize),
      'Build the cache with --tokenizer DIR',
    )
  );
}

/**
 * A row must go through a model whole: within its context, and of ids that it knows.
 * @param vocabSize ids from here on are unknown to the model
 * @param where the cache and the row
 * @throws StillhouseError ROW_TOO_LONG, VOCABULARY_MISMATCH
 */
export function requireRowFits(
  inputIds: Int32Array,
  { maxPositions, vocabSize }: { readonly maxPositions: number; readonly vocabSize: number },
  where: string,
): void {
  if (inputIds.length > maxPositions) {
    throw new StillhouseError({
      code: 'ROW_TOO_LONG',
      where,
      problem: "the row is longer than the model's context",
      expected: `at most ${maxPositions} tokens`,
      got: String(inputIds.length),
      remedy: 'Build the cache with a smaller --max-length',
    });
  }
  const largest = inputIds.reduce((most, id) => Math.max(most, id), 0);
  if (largest < vocabSize) return;
  throw new StillhouseError({
    code: 'VOCABULARY_MISMATCH',
    where,
    problem: 'the row has an id that the model does not know',
    expected: `ids below ${vocabSize}`,
    got: String(largest),
    remedy: 'Use a model with the same tokenizer as the cache',
  });
}

/**
 * Ids must mean the same to cache and model: an id is all that the cache says of a token.
 * @throws StillhouseError TOKENIZER_MISMATCH, MODEL_TOKENIZER_MISSING
 */
export async function checkModelTokenizer(cache: TeacherCache, modelFolder: string): Promise<void> {
  if (cache.tokenizerFolder === null) return;
  if (!(await hasTokenizer(modelFolder))) {
    throw new StillhouseError({
      code: 'MODEL_TOKENIZER_MISSING',
      where: modelFolder,
      problem: "the model has no tokenizer to hold against the cache's",
      remedy: `Copy the files of ${cache.tokenizerFolder} into it if they are its own`,
    });
  }
  const [teacher, model] = [await openTokenizer(cache.tokenizerFolder), await openTokenizer(modelFolder)];
  assertSameMeanings(teacher, model, cache.tokenizerFolder, modelFolder);
}
