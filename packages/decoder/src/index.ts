/** The Qwen2 and Llama decoder as graphs. Works on ids; knows no text. */
export { emitCacheBias, emitSegmentBias } from './attention-bias.ts';
export { type BlockInputs, type BlockOutputs, type BlockWeights, emitBlock, type KeyValueCache } from './block.ts';
export { type EmbeddingGradient, embeddingGradientCalls, embeddingGradientGraph } from './embedding-gradient.ts';
export {
  type BatchTensors,
  blockCall,
  compileForwardPrograms,
  embeddingCall,
  exposingBlocks,
  type ForwardPrograms,
  freeBatch,
  type LayerPrograms,
  type LayerTensors,
  releaseForwardPrograms,
  takeLayerPrograms,
  uploadBatch,
} from './forward-pass.ts';
export {
  createGenerator,
  type GeneratedSequence,
  type GenerateOptions,
  type Generator,
  type GeneratorOptions,
  greedyHeadGraph,
} from './generation.ts';
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
  finalNormGraph,
  gatherRowsGraph,
  gradientName,
  mergeAdapterGraph,
  type SavedActivation,
  type SavingBlockGraphs,
  savingBlockGraphs,
  scatterRowsGraph,
  segmentBiasGraph,
} from './model-graphs.ts';
export { type DecoderOnDevice, loadDecoder, residualStreamCalls } from './model-on-device.ts';
export { cutIntoBlocks, type PerQueryBlocks, perQueryBlocks, QUERY_BLOCK_LENGTH } from './query-blocks.ts';
export { computeRotaryTables, inverseFrequencies, type RotaryTables } from './rotary.ts';
export { flatIndex, type Placement, packSequences, padSequences, type TokenBatch } from './token-batch.ts';
