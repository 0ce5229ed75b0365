import { totalmem } from 'node:os';
import type { Accelerator, DeviceName } from './device.ts';
import { measureCudaMemory } from './native/cuda-driver.ts';
import { findCudaProvider } from './native/onnxruntime-library.ts';

/** Memory that the process may take, in bytes: the machine's, or what its container allows where that is less. */
export function measureAvailableMemory(): number {
  const allowed = process.constrainedMemory() ?? 0;
  return allowed > 0 ? Math.min(allowed, totalmem()) : totalmem();
}

/**
 * Memory that the tensors of an engine would share, in bytes: a CUDA device's where the engine would choose one or is
 * told to, else what the process may take. WebGPU does not tell its own; where CUDA is asked for and not there,
 * `openEngine` says so.
 * @param device and `candidates` as of `openEngine`
 */
export function measureTensorMemory(device: DeviceName, candidates: readonly Accelerator[] = []): number {
  const mayBeCuda = device === 'cuda' || (device === 'auto' && candidates.includes('cuda'));
  if (!mayBeCuda || !findCudaProvider().isPresent) return measureAvailableMemory();
  return measureCudaMemory() ?? measureAvailableMemory();
}
