import { describeLayer, EMBEDDING_NAME, layerTensorName, type ModelConfig } from '@stillhouse/checkpoint';
import { adapterParameters, type BlockGradientOptions, type LowRankAdapter } from '@stillhouse/decoder';
import type { Objective } from '@stillhouse/objectives';
import { attentionLayer } from '@stillhouse/teacher-cache';
import type { StudentAdapter } from '../step/adapters.ts';
import { countRunLayers } from './feature-reach.ts';

/** What a layer's backward pass gives. */
export interface LayerBackward {
  /** Weights that take a gradient, by their local name. */
  readonly trained: ReadonlySet<string>;
  /** The adapters that the layer has. */
  readonly adapter: LowRankAdapter | undefined;
  /** Whether the gradient goes on to the residual stream before the layer. */
  readonly hasInputGradient: boolean;
  /** Whether a gradient comes to the layer's attention output, which is then held to a teacher's. */
  readonly hasAttentionSeed: boolean;
}

/** How far down a backward pass goes. */
export interface BackwardPlan {
  /** By layer; `undefined` for those below the lowest thing that learns, which are run forwards only. */
  readonly layers: readonly (LayerBackward | undefined)[];
  /** Layers that are run at all. */
  readonly runLayers: number;
  /** The lowest layer that is run backwards; the number of layers where none is. */
  readonly lowestLayer: number;
  readonly hasEmbeddingGradient: boolean;
  /** Layers, from 0, whose attention outputs are held to a teacher's. */
  readonly attentionLayers: ReadonlySet<number>;
}

/**
 * @param trained whether a parameter of the student learns, by its full name
 * @param objective which states of the student are held to a teacher's, and whether anything else counts
 */
export function planBackward(
  config: ModelConfig,
  trained: (name: string) => boolean,
  adapter?: StudentAdapter,
  objective: Pick<Objective, 'features' | 'isFeaturesOnly'> = {},
): BackwardPlan {
  const { features = [] } = objective;
  const runLayers = countRunLayers(objective, config.layerCount);
  const attentionLayers = new Set(
    features.flatMap(({ student }) => {
      const depth = attentionLayer(student);
      return depth === undefined ? [] : [depth - 1];
    }),
  );
  const names = describeLayer(config).map(({ name }) => name);
  const adapted = adapter === undefined ? [] : adapterParameters(config, adapter).map(({ name }) => name);
  const hasEmbeddingGradient = trained(EMBEDDING_NAME);
  let isAnyBelow = hasEmbeddingGradient;
  const layers = Array.from({ length: config.layerCount }, (_, layer): LayerBackward | undefined => {
    const isAdapted = adapter?.layers.has(layer) === true;
    const all = isAdapted ? [...names, ...adapted] : names;
    const own = new Set(all.filter((name) => trained(layerTensorName(layer, name))));
    const hasInputGradient = isAnyBelow;
    isAnyBelow ||= own.size > 0;
    const hasAttentionSeed = attentionLayers.has(layer);
    return isAnyBelow && layer < runLayers
      ? { trained: own, adapter: isAdapted ? adapter : undefined, hasInputGradient, hasAttentionSeed }
      : undefined;
  });
  const lowest = layers.findIndex((layer) => layer !== undefined);
  const lowestLayer = lowest === -1 ? config.layerCount : lowest;
  return { layers, runLayers, lowestLayer, hasEmbeddingGradient, attentionLayers };
}

/** Whether the gradient comes to the residual stream after `layer` layers: something at or below learns. */
export function takesGradient({ lowestLayer, hasEmbeddingGradient }: BackwardPlan, layer: number): boolean {
  return hasEmbeddingGradient || lowestLayer < layer;
}

/** Layers of one key are one program. */
export function layerKey({ trained, adapter, hasInputGradient, hasAttentionSeed }: LayerBackward): string {
  return `${hasInputGradient} ${hasAttentionSeed} ${adapter !== undefined} ${[...trained].join()}`;
}

export function gradientOptions(
  { trained, adapter, hasInputGradient, hasAttentionSeed }: LayerBackward,
  queryBlocks: number,
): BlockGradientOptions {
  return {
    queryBlocks,
    trained: (name) => trained.has(name),
    hasInputGradient,
    hasAttentionSeed,
    ...(adapter === undefined ? {} : { adapter }),
  };
}
