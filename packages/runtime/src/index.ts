export { measureAvailableMemory, measureTensorMemory } from './available-memory.ts';
export type { Call } from './call.ts';
export { type Accelerator, type DeviceName, type EngineOptions, openEngine } from './device.ts';
export type { Engine, MemoryUse, ModelOptions } from './engine.ts';
export type { Program } from './program.ts';
export type { Port } from './protocol.ts';
export type { DeviceTensor } from './tensor.ts';
