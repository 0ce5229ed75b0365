import type { ModelConfig } from '@stillhouse/checkpoint';
import { StillhouseError } from '@stillhouse/errors';
import { type SoftLabels, sharedVocabulary } from '@stillhouse/objectives';
import type { CacheDescription } from '@stillhouse/teacher-cache';

/** What the divergence is taken from. */
export interface KdLabels {
  readonly soft: Exclude<SoftLabels, { readonly kind: 'none' }>;
  /** Rows of the output matrices that take part: all, or where their numbers differ the ids that really exist. */
  readonly vocabSize: number;
  /** Whether the cache names the teacher's best id; otherwise it is computed from the full distribution. */
  readonly hasTopK: boolean;
  /** How exact the labels are, in words. */
  readonly detail: string;
}

/**
 * The best labels a cache has: the full distribution where hidden states and output matrix are there, else the top k
 * with the exact mass outside. The `bucket` tail would be another quantity and is never taken.
 * @throws StillhouseError LABELS_NOT_IN_CACHE, TEMPERATURE_NOT_IN_GRID, VOCABULARY_MISMATCH
 */
export function resolveKdLabels(
  cache: CacheDescription,
  model: ModelConfig,
  temperatures: readonly number[],
  where: string,
): KdLabels {
  const { topk, hidden, head } = cache.labels;
  const vocabSize = sharedVocabulary(cache, model.vocabSize, where);
  const hasTopK = topk !== null;
  if (head && hidden?.layers.includes('final') && cache.teacher !== null) {
    const soft = { kind: 'full', teacherHidden: cache.teacher.hiddenSize } as const;
    return { soft, vocabSize, hasTopK, detail: `final hidden states in ${hidden.dtype} and the output matrix` };
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
  const outside = temperatures.find((temperature) => !topk.temperatures.includes(temperature));
  if (outside !== undefined) {
    throw new StillhouseError({
      code: 'TEMPERATURE_NOT_IN_GRID',
      where: `--temperatures ${temperatures.join(',')}`,
      problem: `the cache ${where} knows the exact tail at other temperatures only`,
      expected: `temperatures among ${topk.temperatures.join(', ')}`,
      got: String(outside),
      remedy: 'Leave that temperature out, or build the cache with it or with hidden states',
    });
  }
  const isWhole = topk.k === cache.teacher?.vocabSize && topk.k === vocabSize;
  const soft = { kind: 'topk', k: topk.k, tail: 'tail', isWhole } as const;
  const detail = isWhole ? `the whole distribution` : `top-${topk.k} and the exact mass outside, a lower bound`;
  return { soft, vocabSize, hasTopK, detail };
}
