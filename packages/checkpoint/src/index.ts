/** Weights and configurations on disk: safetensors files and Hugging Face model folders, read and written. */
export { assertFinite } from './finite-weights.ts';
export { openSafetensors, type SafetensorsSource } from './formats/safetensors/safetensors-source.ts';
export type { StoredDtype, TensorArray } from './formats/safetensors/stored-dtype.ts';
export { type TensorToWrite, writeSafetensors } from './formats/safetensors/write-safetensors.ts';
export { parseModelConfig, readModelConfig } from './hugging-face/config-file.ts';
export { digestModel, type ModelDigest, type ModelFileDigest } from './hugging-face/model-digest.ts';
export { openModelWeights } from './hugging-face/open-model-weights.ts';
export {
  type AdapterToWrite,
  adapterNames,
  adapterSide,
  isAdapterName,
  writePeftAdapter,
} from './hugging-face/peft-adapter.ts';
export { type ModelToWrite, writeModelFolder } from './hugging-face/write-model-folder.ts';
export type { Architecture, Llama3RopeScaling, ModelConfig, RopeConfig } from './model-config.ts';
export { createModelWeights, type ModelWeights, type WeightTensor } from './model-weights.ts';
export { countParameters, describeLayer, describeParameters, type ParameterSpec } from './parameters.ts';
export {
  arrangeByPlace,
  type ByPlace,
  EMBEDDING_NAME,
  FINAL_NORM_NAME,
  groupByLayer,
  isHeadTied,
  isNormWeight,
  layerTensorName,
  locateTensor,
  outputMatrixName,
  type TensorPlace,
} from './tensor-names.ts';
export type { FloatArrays, StoredTensor, TensorSource } from './tensor-source.ts';
