import assert from 'node:assert/strict';
import { test } from 'vitest';
import { assertSameMeanings, compareMeanings } from './meanings.ts';

const vocabulary = (tokens: readonly (string | undefined)[]) => ({
  tokenOf: (id: number) => tokens[id],
  realVocabSize: tokens.length,
});

test('ids are compared by what they stand for', () => {
  const a = vocabulary(['x', 'y', undefined, '<e>']);
  const b = vocabulary(['x', 'z', undefined, '<e>', 'new']);
  assert.deepEqual(compareMeanings(a, b), {
    differing: [
      { id: 1, a: 'y', b: 'z' },
      { id: 4, a: undefined, b: 'new' },
    ],
    sharedCount: 2,
  });
});

test('a student may know more ids than the cache, not fewer and not others', () => {
  const a = vocabulary(['x', 'y']);
  const more = vocabulary(['x', 'y', 'z']);
  assertSameMeanings(a, more, 'cache', 'student');
  assert.throws(() => assertSameMeanings(more, a, 'cache', 'student'), {
    code: 'TOKENIZER_MISMATCH',
    message:
      'cache and student: 1 id means something else (2 agree); expected the same string for every id, got 2 ' +
      '"z" / nothing. ' +
      'Use a student with the same special tokens as the teacher.',
  });
});

test('another family is called so, and eight ids stand for all', () => {
  const a = vocabulary(Array.from({ length: 12 }, (_, id) => `a${id}`));
  const b = vocabulary(Array.from({ length: 12 }, (_, id) => `b${id}`));
  assert.throws(() => assertSameMeanings(a, b, 'c', 's'), {
    code: 'TOKENIZER_MISMATCH',
    message: /different families: 12 of 12 ids.*0 "a0" \/ "b0".*7 "a7" \/ "b7", and 4 more\./,
  });
});
