import { StillhouseError } from '@stillhouse/errors';
import type { Tokenizer } from './tokenizer.ts';

/** An id whose strings differ; undefined on the side that has no such id. */
export interface DifferingId {
  readonly id: number;
  readonly a: string | undefined;
  readonly b: string | undefined;
}

export interface MeaningComparison {
  /** By ascending id. */
  readonly differing: readonly DifferingId[];
  /** Ids with the same string in both. */
  readonly sharedCount: number;
}

type Vocabulary = Pick<Tokenizer, 'tokenOf' | 'realVocabSize'>;

/** Compares what every id means in two tokenizers; ids that neither has are left out. */
export function compareMeanings(a: Vocabulary, b: Vocabulary): MeaningComparison {
  const differing: DifferingId[] = [];
  let sharedCount = 0;
  for (let id = 0; id < Math.max(a.realVocabSize, b.realVocabSize); id++) {
    const [left, right] = [a.tokenOf(id), b.tokenOf(id)];
    if (left !== right) differing.push({ id, a: left, b: right });
    else if (left !== undefined) sharedCount += 1;
  }
  return { differing, sharedCount };
}

const SHOWN_IDS = 8;

/**
 * Ids of `a` (the cache's) must mean the same in `b` (the student's). Ids that only `b` has are no obstacle: `a` can
 * never name them.
 * @throws StillhouseError TOKENIZER_MISMATCH naming the first ids with both strings
 */
export function assertSameMeanings(a: Vocabulary, b: Vocabulary, whereA: string, whereB: string): void {
  const { differing, sharedCount } = compareMeanings(a, b);
  const conflicts = differing.filter((entry) => entry.a !== undefined);
  if (conflicts.length === 0) return;
  const quote = (token: string | undefined) => (token === undefined ? 'nothing' : JSON.stringify(token));
  const shown = conflicts.slice(0, SHOWN_IDS).map((entry) => `${entry.id} ${quote(entry.a)} / ${quote(entry.b)}`);
  const rest = conflicts.length > SHOWN_IDS ? `, and ${conflicts.length - SHOWN_IDS} more` : '';
  const isOtherFamily = conflicts.length > sharedCount;
  throw new StillhouseError({
    code: 'TOKENIZER_MISMATCH',
    where: `${whereA} and ${whereB}`,
    problem: isOtherFamily
      ? `the tokenizers are of different families: ${conflicts.length} of ${a.realVocabSize} ids mean something else`
      : `${conflicts.length} ${conflicts.length === 1 ? 'id means' : 'ids mean'} something else (${sharedCount} agree)`,
    expected: 'the same string for every id',
    got: `${shown.join(', ')}${rest}`,
    remedy: isOtherFamily
      ? 'Use a student with the tokenizer of the teacher'
      : 'Use a student with the same special tokens as the teacher',
  });
}
