import type { ModelConfig } from '@stillhouse/checkpoint';
import { StillhouseError } from '@stillhouse/errors';
import {
  type RefineMode,
  type Refinement,
  resolveRefinement,
  type SoftLabels,
  sharedVocabulary,
} from '@stillhouse/objectives';
import { type CacheDescription, keepsWholeVocabulary, largestTopKCount } from '@stillhouse/teacher-cache';

/** What the divergence is taken from. */
export interface KdLabels {
  readonly soft: Extract<SoftLabels, { readonly kind: 'full' | 'topk' }>;
  /** For full labels: how they are refined at each of the temperatures asked for; left out where they are not. */
  readonly refinements?: readonly Refinement[];
  /** Rows of the output matrices that take part: all, or where their numbers differ the ids that really exist. */
  readonly vocabSize: number;
  /** Whether the cache names the teacher's best id; otherwise it is computed from the full distribution. */
  readonly hasTopK: boolean;
  /** How exact the labels are, in words. */
  readonly detail: string;
}

export interface KdQuestion {
  readonly temperatures: readonly number[];
  /** Names the cache in errors. */
  readonly where: string;
  readonly refine?: RefineMode;
}

/**
 * The best labels a cache has: the full distribution where hidden states and output matrix are there, else the top k
 * with the exact mass outside. The `bucket` tail would be another quantity and is never taken, nor are sampled labels,
 * whose divergence is too large by what the draws miss.
 * @param cache with the labels that are there
 * @throws StillhouseError LABELS_NOT_IN_CACHE, TEMPERATURE_NOT_IN_GRID, TAIL_UNKNOWN, REFINEMENT_NOT_IN_CACHE,
 *   SETTING_NOT_FOR_LABELS, VOCABULARY_MISMATCH
 */
export function resolveKdLabels(
  cache: CacheDescription,
  model: ModelConfig,
  { temperatures, where, refine = 'auto' }: KdQuestion,
): KdLabels {
  const { topk, hidden, head } = cache.labels;
  const vocabSize = sharedVocabulary(cache, model.vocabSize, where);
  const hasTopK = topk !== null;
  if (head && hidden?.layers.includes('final') && cache.teacher !== null) {
    const soft = { kind: 'full', teacherHidden: cache.teacher.hiddenSize! } as const;
    const detail = `final hidden states in ${hidden.dtype} and the output matrix`;
    const refinements = temperatures.map((temperature) => resolveRefinement(refine, cache, temperature, where));
    const isRefined = (one: Refinement | undefined): one is Refinement => one !== undefined;
    if (!refinements.every(isRefined)) return { soft, vocabSize, hasTopK, detail };
    return { soft, refinements, vocabSize, hasTopK, detail: `${detail}, the head from top-${topk!.k}` };
  }
  if (refine === 'always') {
    throw new StillhouseError({
      code: 'SETTING_NOT_FOR_LABELS',
      where: '--refine always',
      problem: `the cache ${where} has no full labels to refine`,
      expected: 'final hidden states and the output matrix',
      remedy: 'Leave --refine out, or evaluate on a cache that has them',
    });
  }
  if (topk === null) {
    throw new StillhouseError({
      code: 'LABELS_NOT_IN_CACHE',
      where,
      problem: "the cache holds nothing of the teacher's distribution",
      expected: 'top-k labels, or final hidden states with the output matrix',
      remedy: 'Build a cache with --labels topk or --labels topk,hidden',
    });
  }
  // Of a tail that is unknown the mass is: at T = 1 it is what the stored ids leave.
  const known = topk.tail === 'unknown' ? [1] : topk.temperatures;
  const outside = temperatures.find((temperature) => !known.includes(temperature));
  if (outside !== undefined && topk.tail === 'unknown') {
    throw new StillhouseError({
      code: 'TAIL_UNKNOWN',
      where: `--temperatures ${temperatures.join(',')}`,
      problem: `the cache ${where} has the teacher's best ids, and the mass of all others at T = 1 only`,
      expected: 'temperature 1',
      got: String(outside),
      remedy: 'Use --temperatures 1, or evaluate on a cache with exact tails or hidden states',
    });
  }
  if (outside !== undefined) {
    throw new StillhouseError({
      code: 'TEMPERATURE_NOT_IN_GRID',
      where: `--temperatures ${temperatures.join(',')}`,
      problem: `the cache ${where} knows the exact tail at other temperatures only`,
      expected: `temperatures among ${known.join(', ')}`,
      got: String(outside),
      remedy: 'Leave that temperature out, or build the cache with it or with hidden states',
    });
  }
  const isWhole = topk.k === vocabSize && keepsWholeVocabulary(topk, cache.teacher!.vocabSize);
  const k = largestTopKCount(topk, cache.teacher!.vocabSize);
  const soft = { kind: 'topk', k, tail: 'tail', isWhole } as const;
  const detail = isWhole ? `the whole distribution` : `top-${topk.k} and the exact mass outside, a lower bound`;
  return { soft, vocabSize, hasTopK, detail };
}
