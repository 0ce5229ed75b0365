import type { ModelConfig } from './model-config.ts';
import { countElements } from './stored-dtype.ts';

export const EMBEDDING_NAME = 'model.embed_tokens.weight';
/** Absent from a checkpoint whose output matrix is tied to the embedding. */
export const OUTPUT_MATRIX_NAME = 'lm_head.weight';

/** A tensor that a model of some configuration has, in checkpoint layout: linear weights are [out, in]. */
export interface ParameterSpec {
  readonly name: string;
  readonly shape: readonly number[];
}

/** Every tensor of the architecture in checkpoint order. A tied output matrix is the embedding and has no entry. */
export function describeParameters(config: ModelConfig): readonly ParameterSpec[] {
  const { hiddenSize, vocabSize } = config;
  return [
    { name: EMBEDDING_NAME, shape: [vocabSize, hiddenSize] },
    ...Array.from({ length: config.layerCount }, (_, layer) => describeLayer(config, `model.layers.${layer}.`)).flat(),
    { name: 'model.norm.weight', shape: [hiddenSize] },
    ...(config.tieWordEmbeddings ? [] : [{ name: OUTPUT_MATRIX_NAME, shape: [vocabSize, hiddenSize] }]),
  ];
}

function describeLayer(config: ModelConfig, prefix: string): readonly ParameterSpec[] {
  const { hiddenSize, intermediateSize, headCount, kvHeadCount, headDim, attentionBias, attentionOutputBias, mlpBias } =
    config;
  const linear = (name: string, out: number, input: number, hasBias: boolean): readonly ParameterSpec[] => [
    { name: `${prefix}${name}.weight`, shape: [out, input] },
    ...(hasBias ? [{ name: `${prefix}${name}.bias`, shape: [out] }] : []),
  ];
  return [
    { name: `${prefix}input_layernorm.weight`, shape: [hiddenSize] },
    ...linear('self_attn.q_proj', headCount * headDim, hiddenSize, attentionBias),
    ...linear('self_attn.k_proj', kvHeadCount * headDim, hiddenSize, attentionBias),
    ...linear('self_attn.v_proj', kvHeadCount * headDim, hiddenSize, attentionBias),
    ...linear('self_attn.o_proj', hiddenSize, headCount * headDim, attentionOutputBias),
    { name: `${prefix}post_attention_layernorm.weight`, shape: [hiddenSize] },
    ...linear('mlp.gate_proj', intermediateSize, hiddenSize, mlpBias),
    ...linear('mlp.up_proj', intermediateSize, hiddenSize, mlpBias),
    ...linear('mlp.down_proj', hiddenSize, intermediateSize, mlpBias),
  ];
}

/** Numbers a model of this configuration holds; a tied output matrix counts once. */
export function countParameters(config: ModelConfig): number {
  return describeParameters(config).reduce((sum, { shape }) => sum + countElements(shape), 0);
}
