import { StillhouseError } from '@stillhouse/errors';
import { type TeacherCache, teacherSha256 } from '@stillhouse/teacher-cache';
import type { ResolvedObjective } from '../settings/objective-from-settings.ts';
import type { TrainingSettings } from '../settings/training-settings.ts';

/** A cache that a run learns from, and what its tokens weigh beside those of others; `undefined`: as many as it has. */
export interface CacheShare {
  readonly location: string;
  readonly weight: number | undefined;
}

/**
 * The caches that `cache` names, separated by commas, with their `cacheWeights`.
 * @throws StillhouseError SETTING_INVALID, SETTING_UNUSED
 */
export function parseCaches(cache: string, weights: TrainingSettings['cacheWeights']): readonly CacheShare[] {
  const locations = cache.split(',').map((location) => location.trim());
  const refuse = (where: string, problem: string, expected: string, got: string): never => {
    throw new StillhouseError({ code: 'SETTING_INVALID', where, problem, expected, got });
  };
  if (locations.includes('')) refuse('--cache', 'a cache has no name', 'names separated by commas', cache);
  const twice = locations.find((location, i) => locations.indexOf(location) < i);
  if (twice !== undefined) refuse('--cache', 'a cache is named twice', 'each cache once', twice);
  if (weights === undefined) return locations.map((location) => ({ location, weight: undefined }));
  if (locations.length === 1) {
    throw new StillhouseError({
      code: 'SETTING_UNUSED',
      where: '--cache-weights',
      problem: 'there is one cache, and nothing to weigh it against',
      remedy: 'Leave it out, or name more caches with --cache A,B',
    });
  }
  if (weights.length !== locations.length) {
    const expected = `${locations.length} weights, one for each of ${locations.join(', ')}`;
    refuse('--cache-weights', 'there are not as many weights as caches', expected, weights.join(','));
  }
  return locations.map((location, i) => ({ location, weight: weights[i]! }));
}

/** A cache with what the settings ask of it, were it alone. */
export interface MixedCache extends ResolvedObjective {
  readonly location: string;
  readonly cache: Pick<TeacherCache, 'digest' | 'manifest' | 'description'>;
}

/**
 * One objective for rows of all caches: the loss is one program, with one output matrix of the teacher. The numbers of
 * top-k entries may differ, a position with fewer lacks some. Scales and grids of temperatures are each cache's own.
 * @throws StillhouseError CACHES_DIFFER, SETTING_INVALID for one cache under two names
 */
export function mixObjectives(caches: readonly MixedCache[]): ResolvedObjective {
  const [first, ...others] = caches as [MixedCache, ...MixedCache[]];
  let mixed: ResolvedObjective = { objective: first.objective, vocabSize: first.vocabSize };
  for (const [i, other] of others.entries()) {
    const twin = caches.slice(0, i + 1).find(({ cache }) => cache.digest === other.cache.digest);
    if (twin !== undefined) {
      throw new StillhouseError({
        code: 'SETTING_INVALID',
        where: '--cache',
        problem: `${twin.location} and ${other.location} are the same cache`,
        expected: 'each cache once',
        got: other.cache.digest,
        remedy: 'Leave one out, or weigh it with --cache-weights',
      });
    }
    mixed = mixPair(mixed, first, other);
  }
  return mixed;
}

function mixPair(mixed: ResolvedObjective, first: MixedCache, other: MixedCache): ResolvedObjective {
  const requireSame = (what: string, a: unknown, b: unknown, remedy: string) => {
    const [expected, got] = [a, b].map((value) => (typeof value === 'string' ? value : JSON.stringify(value ?? null)));
    if (expected === got) return;
    throw new StillhouseError({
      code: 'CACHES_DIFFER',
      where: other.location,
      problem: `${what} is not that of ${first.location}, and both would be trained on together`,
      expected: expected!,
      got: got!,
      remedy,
    });
  };
  const topKRemedy = 'Train on --labels topk, which needs none, or on caches of one teacher';
  requireSame('the number of ids that count', mixed.vocabSize, other.vocabSize, 'Use caches with one tokenizer');
  const { labels, features } = mixed.objective;
  const { labels: own, features: ownFeatures } = other.objective;
  requireSame('the kind of labels', labels.kind, own.kind, 'Choose one with --labels');
  if (features !== undefined) {
    const [teacher, ownTeacher] = [first, other].map(({ cache }) => teacherSha256(cache.description.teacher!));
    requireSame('the teacher, whose hidden states are matched,', teacher, ownTeacher, 'Leave --hidden-weight at 0');
    requireSame('what is matched of hidden states', features, ownFeatures, 'Name the layers with --hidden-layers');
  }
  if (labels.kind === 'topk' && own.kind === 'topk') {
    const k = Math.max(labels.k, own.k);
    const mixedLabels = { ...labels, k, isWhole: labels.isWhole && own.isWhole };
    return { ...mixed, objective: { ...mixed.objective, labels: mixedLabels } };
  }
  if (labels.kind !== 'full' || own.kind !== 'full') return mixed;
  const [matrix, ownMatrix] = [first, other].map(({ cache }) => cache.manifest.outputMatrix?.sha256);
  requireSame("the teacher's output matrix", matrix, ownMatrix, topKRemedy);
  requireSame('the width of full labels', labels.teacherHidden, own.teacherHidden, topKRemedy);
  const [refinement, ownRefinement] = [labels.refinement, own.refinement];
  const refineRemedy = 'Use --refine never, or extend the caches until both have the same labels';
  requireSame('whether full labels are refined', refinement !== undefined, ownRefinement !== undefined, refineRemedy);
  if (refinement === undefined || ownRefinement === undefined) return mixed;
  requireSame('how full labels are refined', refinement.normaliser, ownRefinement.normaliser, refineRemedy);
  const k = Math.max(refinement.k, ownRefinement.k);
  return { ...mixed, objective: { ...mixed.objective, labels: { ...labels, refinement: { ...refinement, k } } } };
}

/** Labels from the one that says most of the teacher to none. */
const KINDS = ['full', 'topk', 'sampled', 'none'] as const;

/** The kind of labels to take where none is asked for: the best that every cache has. */
export const commonKind = (resolved: readonly ResolvedObjective[]): (typeof KINDS)[number] =>
  KINDS[Math.max(...resolved.map(({ objective }) => KINDS.indexOf(objective.labels.kind)))]!;

/**
 * Whether the codes of coded final states mean the same in all caches, so that one matrix serves the codes themselves.
 */
export function haveOneCodebook(caches: readonly MixedCache['cache'][]): boolean {
  const scales = caches.map(({ manifest }) => manifest.scales.find(({ layer }) => layer === 'final')?.sha256);
  return scales.every((sha256) => sha256 === scales[0]);
}
