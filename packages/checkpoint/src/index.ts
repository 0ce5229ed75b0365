/** Weights and configurations on disk: safetensors, and Hugging Face folders to read and to write. */
export {
  type Architecture,
  type Llama3RopeScaling,
  type ModelConfig,
  parseModelConfig,
  readModelConfig,
} from './model-config.ts';
export { assertFinite, checkModelWeights, digestModel, type ModelDigest, openModelWeights } from './model-folder.ts';
export { countParameters, describeParameters, type ParameterSpec } from './parameters.ts';
export type { StoredDtype, TensorInfo } from './tensor-info.ts';
export { openSafetensors, type TensorArray, type TensorSource } from './tensor-source.ts';
export { type ModelToWrite, writeModelFolder } from './write-model-folder.ts';
export { type TensorToWrite, writeSafetensors } from './write-safetensors.ts';
