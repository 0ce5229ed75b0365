import { isHeadTied, locateTensor, type ModelConfig } from '@stillhouse/checkpoint';
import type { FeatureMatch, Objective } from '@stillhouse/objectives';
import { attentionLayer } from '@stillhouse/teacher-cache';
import type { Learning } from './learning.ts';

/** Layers that must run for a student's state to be there. */
export const depthOf = ({ student }: Pick<FeatureMatch, 'student'>, layerCount: number): number =>
  student === 'final' ? layerCount : (attentionLayer(student) ?? Number(student));

/** Layers of the student that an objective runs: all, or with features alone as many as the highest of them needs. */
export function countRunLayers(
  { features = [], isFeaturesOnly = false }: Pick<Objective, 'features' | 'isFeaturesOnly'>,
  layerCount: number,
): number {
  return isFeaturesOnly ? Math.max(...features.map((match) => depthOf(match, layerCount))) : layerCount;
}

/** In a layer, what comes before its attention output. */
const BEFORE_ATTENTION_OUTPUT = /^(self_attn|input_layernorm)\./;

/**
 * Whether a gradient comes to a parameter, by its full name. What none comes to must not be updated: weight decay would
 * shrink it all the same.
 */
export function reachedBy(
  objective: Pick<Objective, 'features' | 'isFeaturesOnly'>,
  config: Pick<ModelConfig, 'layerCount' | 'tieWordEmbeddings'>,
): (name: string) => boolean {
  const { features = [], isFeaturesOnly = false } = objective;
  const { layerCount } = config;
  if (!isFeaturesOnly) return () => true;
  const depth = countRunLayers(objective, layerCount);
  const highest = features.filter((match) => depthOf(match, layerCount) === depth);
  const endsInAttention = highest.every(({ student }) => attentionLayer(student) !== undefined);
  return (name) => {
    const place = locateTensor(name);
    if (place?.part === 'layer') {
      if (place.layer === depth - 1 && endsInAttention) return BEFORE_ATTENTION_OUTPUT.test(place.name);
      return place.layer < depth;
    }
    if (place?.part === 'norm') return highest.some(({ student }) => student === 'final');
    return place?.part !== 'head' || isHeadTied(config);
  };
}

/** Of what is to learn, what a gradient comes to. */
export function keepReached(
  learning: Learning,
  objective: Pick<Objective, 'features' | 'isFeaturesOnly'>,
  config: Parameters<typeof reachedBy>[1],
): Learning {
  const isReached = reachedBy(objective, config);
  return { ...learning, trained: (name) => learning.trained(name) && isReached(name) };
}
