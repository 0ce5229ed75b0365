export { measureAvailableMemory, measureTensorMemory } from './available-memory.ts';
export { type Accelerator, type DeviceName, type EngineOptions, openEngine } from './device.ts';
export type { Call, Engine, MemoryUse } from './engine.ts';
export type { Program } from './program.ts';
export type { Port, ProductPrecision } from './protocol.ts';
export { type DeviceTensor, TENSOR_ARRAYS, type TensorData, type TensorDtype } from './tensor.ts';
