import type { ModelConfig } from './model-config.ts';

/**
 * What the tensors of a decoder are called: Hugging Face's names, as Llama and Qwen2 have them. Formats with other
 * names translate theirs to these. Nothing outside this package builds or parses such a name.
 */
export const EMBEDDING_NAME = 'model.embed_tokens.weight';
export const FINAL_NORM_NAME = 'model.norm.weight';
/** Absent from a checkpoint whose output matrix is tied to the embedding. */
export const OUTPUT_MATRIX_NAME = 'lm_head.weight';

const LAYER = /^model\.layers\.(\d+)\.(.+)$/;

/** The full name of a tensor of a layer. @param name its local one, e.g. `self_attn.q_proj.weight` */
export const layerTensorName = (layer: number, name: string): string => `model.layers.${layer}.${name}`;

/** Whether a tensor, by its full or local name, is the weight of a norm: of a layer's or the final one. */
export const isNormWeight = (name: string): boolean => name.endsWith('norm.weight');

/** Whether the output matrix is the embedding, one tensor in two uses. */
export const isHeadTied = ({ tieWordEmbeddings }: Pick<ModelConfig, 'tieWordEmbeddings'>): boolean => tieWordEmbeddings;

/** The tensor that is a model's output matrix: the embedding where they are tied. */
export const outputMatrixName = (config: Pick<ModelConfig, 'tieWordEmbeddings'>): string =>
  isHeadTied(config) ? EMBEDDING_NAME : OUTPUT_MATRIX_NAME;

/** Where in a decoder a tensor belongs. */
export type TensorPlace =
  | { readonly part: 'embedding' | 'norm' | 'head' }
  /** Layers count from 0; `name` is the local one. */
  | { readonly part: 'layer'; readonly layer: number; readonly name: string };

/** Where the tensor of a full name belongs; `undefined` where it is none of a decoder's. */
export function locateTensor(name: string): TensorPlace | undefined {
  if (name === EMBEDDING_NAME) return { part: 'embedding' };
  if (name === FINAL_NORM_NAME) return { part: 'norm' };
  if (name === OUTPUT_MATRIX_NAME) return { part: 'head' };
  const [, layer, local] = LAYER.exec(name) ?? [];
  return layer === undefined ? undefined : { part: 'layer', layer: Number(layer), name: local! };
}

/** One value for each tensor of a model. */
export interface ByPlace<Value> {
  readonly embedding: Value;
  /** Of each layer by local name. */
  readonly layers: readonly Readonly<Record<string, Value>>[];
  readonly norm: Value;
  /** Of the output matrix; the embedding's own where they are tied. */
  readonly head: Value;
}

/** What there is of each layer, by local name; entries that belong to no layer are left out. */
export function groupByLayer<Value>(
  layerCount: number,
  byName: Iterable<readonly [name: string, Value]>,
): readonly Readonly<Record<string, Value>>[] {
  const layers = Array.from({ length: layerCount }, (): Record<string, Value> => ({}));
  for (const [name, value] of byName) {
    const place = locateTensor(name);
    if (place?.part === 'layer') layers[place.layer]![place.name] = value;
  }
  return layers;
}

/** Orders what there is of every tensor of a model by place. @param byName by full name, complete */
export const arrangeByPlace = <Value>(config: ModelConfig, byName: ReadonlyMap<string, Value>): ByPlace<Value> => ({
  embedding: byName.get(EMBEDDING_NAME)!,
  layers: groupByLayer(config.layerCount, byName),
  norm: byName.get(FINAL_NORM_NAME)!,
  head: byName.get(outputMatrixName(config))!,
});
