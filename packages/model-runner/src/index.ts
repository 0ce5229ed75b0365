/** Runs a decoder: layer by layer from disk, or with all weights on the device; batches, KV store, generation. */
export { planLikeLengths } from './batches/batch-plan.ts';
export { flatIndex, type Placement, packSequences, padSequences, type TokenBatch } from './batches/token-batch.ts';
export {
  type BatchTensors,
  blockCall,
  embeddingCall,
  freeBatch,
  type LayerOperands,
  uploadBatch,
} from './forward/batch-tensors.ts';
export {
  compileForwardPrograms,
  exposingBlocks,
  type ForwardPrograms,
  type LayerPrograms,
  type LayerTensors,
  releaseForwardPrograms,
  takeLayerPrograms,
} from './forward/forward-programs.ts';
export {
  createGenerator,
  type GenerateOptions,
  type Generator,
  type GeneratorOptions,
} from './generation/generator.ts';
export type { GeneratedSequence } from './generation/sequence.ts';
export { computeFinalStates, startsOf } from './passes/final-states.ts';
export { openResidentPass, type ResidentPass } from './passes/resident-pass.ts';
export {
  type LayerRun,
  openStreamedPass,
  type PassRow,
  type StreamedPass,
  type StreamedPassOptions,
} from './passes/streamed-pass.ts';
export { type DecoderOnDevice, loadDecoder } from './weights/resident-decoder.ts';
export {
  createStreamedWeights,
  measureWeights,
  type StreamedWeights,
  type StreamedWeightsOptions,
} from './weights/streamed-weights.ts';
export { uploadWeight } from './weights/upload-weight.ts';
