import type { ModelConfig } from '@stillhouse/checkpoint';

/** Multiply-adds of the weights that one token meets in a layer, and one label position in the output matrix. */
export function measureWork(config: ModelConfig): { readonly layer: number; readonly readout: number } {
  const { hiddenSize, intermediateSize, headCount, kvHeadCount, headDim, vocabSize } = config;
  const attention = 2 * hiddenSize * headDim * (headCount + kvHeadCount);
  return { layer: attention + 3 * hiddenSize * intermediateSize, readout: hiddenSize * vocabSize };
}
