import type { ModelConfig } from '@stillhouse/checkpoint';
import type { DecoderOnDevice } from '@stillhouse/model-runner';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { ParameterStore } from './parameters.ts';

/**
 * The weights in training as a decoder for inference: the same tensors, so it follows every update and frees nothing.
 */
export function viewAsDecoder(config: ModelConfig, float: FloatDtype, parameters: ParameterStore): DecoderOnDevice {
  return {
    config,
    float,
    embedding: parameters.embedding.weight,
    layers: parameters.layerWeights,
    norm: parameters.norm.weight,
    head: parameters.outputMatrix.weight,
    ...(parameters.adapter === undefined ? {} : { adapter: parameters.adapter }),
    free: () => {},
  };
}
