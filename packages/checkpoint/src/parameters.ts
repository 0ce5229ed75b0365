import { countElements } from '@stillhouse/tensor-types';
import type { ModelConfig } from './model-config.ts';
import { EMBEDDING_NAME, FINAL_NORM_NAME, isHeadTied, layerTensorName, OUTPUT_MATRIX_NAME } from './tensor-names.ts';

/** A tensor that a model of some configuration has, in checkpoint layout: linear weights are [out, in]. */
export interface ParameterSpec {
  readonly name: string;
  readonly shape: readonly number[];
}

/** Every tensor of the architecture in checkpoint order. A tied output matrix is the embedding and has no entry. */
export function describeParameters(config: ModelConfig): readonly ParameterSpec[] {
  const { hiddenSize, vocabSize, layerCount } = config;
  const ofLayer = describeLayer(config);
  return [
    { name: EMBEDDING_NAME, shape: [vocabSize, hiddenSize] },
    ...Array.from({ length: layerCount }, (_, layer) =>
      ofLayer.map(({ name, shape }) => ({ name: layerTensorName(layer, name), shape })),
    ).flat(),
    { name: FINAL_NORM_NAME, shape: [hiddenSize] },
    ...(isHeadTied(config) ? [] : [{ name: OUTPUT_MATRIX_NAME, shape: [vocabSize, hiddenSize] }]),
  ];
}

/** The tensors of one layer in checkpoint order, by their local names, such as `self_attn.q_proj.weight`. */
export function describeLayer(config: ModelConfig): readonly ParameterSpec[] {
  const { hiddenSize, intermediateSize, headCount, kvHeadCount, headDim, attentionBias, attentionOutputBias, mlpBias } =
    config;
  const linear = (name: string, out: number, input: number, hasBias: boolean): readonly ParameterSpec[] => [
    { name: `${name}.weight`, shape: [out, input] },
    ...(hasBias ? [{ name: `${name}.bias`, shape: [out] }] : []),
  ];
  return [
    { name: 'input_layernorm.weight', shape: [hiddenSize] },
    ...linear('self_attn.q_proj', headCount * headDim, hiddenSize, attentionBias),
    ...linear('self_attn.k_proj', kvHeadCount * headDim, hiddenSize, attentionBias),
    ...linear('self_attn.v_proj', kvHeadCount * headDim, hiddenSize, attentionBias),
    ...linear('self_attn.o_proj', hiddenSize, headCount * headDim, attentionOutputBias),
    { name: 'post_attention_layernorm.weight', shape: [hiddenSize] },
    ...linear('mlp.gate_proj', intermediateSize, hiddenSize, mlpBias),
    ...linear('mlp.up_proj', intermediateSize, hiddenSize, mlpBias),
    ...linear('mlp.down_proj', hiddenSize, intermediateSize, mlpBias),
  ];
}

/** Numbers a model of this configuration holds; a tied output matrix counts once. */
export function countParameters(config: ModelConfig): number {
  return describeParameters(config).reduce((sum, { shape }) => sum + countElements(shape), 0);
}
