import { StillhouseError } from '@stillhouse/errors';
import {
  type CacheDescription,
  type HiddenDtype,
  largestTopKCount,
  type TeacherCache,
} from '@stillhouse/teacher-cache';
import type { Refinement } from '../losses/loss-graph.ts';

/** Whether full labels take the head of the distribution from top-k labels; `auto`: where that is more exact. */
export type RefineMode = 'auto' | 'always' | 'never';

/** Hidden states of these dtypes give the head of the distribution as exactly as top-k labels do. */
const FAITHFUL_DTYPES: readonly HiddenDtype[] = ['float32', 'float16'];

/**
 * What a cache says of itself, with only those labels whose files are there: `cache pull --groups` may have left some
 * out.
 */
export function describeOpenLabels({
  description,
  openLabels,
  hasOutputMatrix,
}: Pick<TeacherCache, 'description' | 'openLabels' | 'hasOutputMatrix'>): CacheDescription {
  const { topk, sampled = null, hidden, head } = description.labels;
  const layers = hidden?.layers.filter((layer) => openLabels.hidden?.includes(layer)) ?? [];
  return {
    ...description,
    labels: {
      topk: openLabels.topk === true ? topk : null,
      sampled: openLabels.sampled === true ? sampled : null,
      hidden: hidden === null || layers.length === 0 ? null : { ...hidden, layers },
      head: head && hasOutputMatrix,
    },
  };
}

/**
 * How full labels of a cache are refined at a temperature; undefined where they are not.
 * @param temperature undefined where it changes over a run: no stored normaliser serves then
 * @throws StillhouseError REFINEMENT_NOT_IN_CACHE
 */
export function resolveRefinement(
  mode: RefineMode,
  { labels, teacher }: CacheDescription,
  temperature: number | undefined,
  where: string,
): Refinement | undefined {
  const { topk, hidden } = labels;
  if (mode === 'never' || (mode === 'auto' && FAITHFUL_DTYPES.includes(hidden!.dtype))) return undefined;
  if (topk !== null) {
    // log_z is 0 at T = 1 whether the grid has it or not.
    const isStored = temperature !== undefined && (temperature === 1 || topk.temperatures.includes(temperature));
    return { k: largestTopKCount(topk, teacher!.vocabSize), normaliser: isStored ? 'stored' : 'computed' };
  }
  if (mode === 'auto') return undefined;
  throw new StillhouseError({
    code: 'REFINEMENT_NOT_IN_CACHE',
    where: '--refine always',
    problem: `the cache ${where} holds no top-k labels to refine full ones with`,
    remedy: 'Use --refine auto, or build the cache with --labels topk,hidden',
  });
}
