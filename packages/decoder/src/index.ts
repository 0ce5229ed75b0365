/** The Qwen2 and Llama decoder as graphs. Works on ids; knows no text. */
export { emitBlockBias, emitCacheBias, emitSegmentBias } from './attention-bias.ts';
export { type BlockInputs, type BlockOutputs, type BlockWeights, emitBlock, type KeyValueCache } from './block.ts';
export { type EmbeddingGradient, embeddingGradientCalls, embeddingGradientGraph } from './embedding-gradient.ts';
export {
  adaptedLinears,
  adapterParameters,
  isLinearName,
  LINEAR_NAMES,
  type LinearName,
  type LowRankAdapter,
} from './low-rank-adapter.ts';
export {
  ATTENTION_OUTPUT,
  ATTENTION_SEED,
  type BlockGradientOptions,
  batchSymbols,
  blockGradientGraph,
  blockGraph,
  cacheBiasGraph,
  cachedBlockGraph,
  embeddingGraph,
  gatherRowsGraph,
  gradientName,
  mergeAdapterGraph,
  type SavedActivation,
  type SavingBlockGraphs,
  savingBlockGraphs,
  scatterRowsGraph,
  segmentBiasGraph,
} from './model-graphs.ts';
export { cutIntoBlocks, type PerQueryBlocks, perQueryBlocks, QUERY_BLOCK_LENGTH } from './query-blocks.ts';
export { finalNormGraph, greedyHeadGraph } from './readout.ts';
export { computeRotaryTables, inverseFrequencies, type RotaryTables } from './rotary.ts';
export { emitBlockedAttention } from './softmax-attention.ts';
