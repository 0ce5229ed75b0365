/** Weights and configurations on disk: safetensors files and Hugging Face model folders, read and written. */
export { assertFinite } from './finite-weights.ts';
export { type Architecture, type ModelConfig, parseModelConfig, readModelConfig } from './model-config.ts';
export { digestModel, type ModelDigest, type ModelFileDigest } from './model-digest.ts';
export { openModelWeights } from './model-weights.ts';
export { checkModelWeights } from './model-weights-check.ts';
export { countParameters, describeParameters, type ParameterSpec } from './parameters.ts';
export type { Llama3RopeScaling, RopeConfig } from './rotary-config.ts';
export type { TensorInfo } from './safetensors-header.ts';
export { countElements, type StoredDtype } from './stored-dtype.ts';
export { openSafetensors, type TensorArray, type TensorSource } from './tensor-source.ts';
export { type ModelToWrite, writeModelFolder } from './write-model-folder.ts';
export { type TensorToWrite, writeSafetensors } from './write-safetensors.ts';
