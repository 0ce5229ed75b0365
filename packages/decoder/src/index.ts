/** The Qwen2 and Llama decoder as graphs. Works on ids; knows no text. */
export {
  cacheBiasGraph,
  emitBlockBias,
  emitSegmentBias,
  segmentBiasGraph,
} from './attention/attention-bias.ts';
export { emitBlockedAttention } from './attention/blocked-attention.ts';
export { cutIntoBlocks, type PerQueryBlocks, perQueryBlocks } from './attention/query-blocks.ts';
export { computeRotaryTables, inverseFrequencies, type RotaryTables } from './attention/rotary.ts';
export { embeddingGradientGraph, embeddingGraph } from './embedding.ts';
export { gradientName } from './gradient-name.ts';
export { emitBlock } from './layer/block.ts';
export {
  ATTENTION_SEED,
  type BlockGradientOptions,
  blockGradientGraph,
  type SavedActivation,
  savingBlockGraphs,
} from './layer/block-gradient-graphs.ts';
export { ATTENTION_OUTPUT, batchSymbols, blockGraph, cachedBlockGraph } from './layer/block-graphs.ts';
export {
  adapterParameters,
  isLinearName,
  LINEAR_NAMES,
  type LowRankAdapter,
  mergeAdapterGraph,
} from './layer/low-rank-adapter.ts';
export { finalNormGraph, greedyHeadGraph } from './readout.ts';
export { gatherRowsGraph, scatterRowsGraph } from './residual-rows.ts';
