import type { InferenceSession } from 'onnxruntime-node';
import type { TensorData, TensorDtype } from './tensor.ts';

/** A loaded model with the tensors of one run, by port name; `shapes` are inputs in main memory. */
export interface BoundRun {
  readonly session: InferenceSession;
  readonly inputs: readonly (readonly [name: string, handle: number])[];
  readonly outputs: readonly (readonly [name: string, handle: number])[];
  readonly shapes: readonly (readonly [name: string, sizes: readonly number[]])[];
}

/**
 * Where an engine's tensors live, behind the handles that the main thread has. Called in strict order, one call at a
 * time. Two kinds: main memory, which the CPU and CUDA use, and buffers of a WebGPU device.
 */
export interface TensorMemory {
  upload(handle: number, dtype: TensorDtype, shape: readonly number[], data: TensorData): Promise<void>;
  /** Zeros. */
  allocate(handle: number, dtype: TensorDtype, shape: readonly number[]): Promise<void>;
  view(handle: number, of: number, offset: number, shape: readonly number[]): Promise<void>;
  write(handle: number, data: TensorData): Promise<void>;
  fill(handle: number, value: number): Promise<void>;
  copy(from: number, to: number): Promise<void>;
  /** Ends tensors; `sizeBytes` is the memory that returns with them. */
  free(handles: readonly number[], sizeBytes: number): Promise<void>;
  download(handle: number): Promise<TensorData>;
  run(run: BoundRun): Promise<void>;
  /** Ends a session as soon as nothing lives that it made. */
  release(session: InferenceSession): Promise<void>;
  /** Gives back what was freed and is still held. */
  collect(): void;
  /** Ends everything. */
  close(): Promise<void>;
}

/** Runs what enters ONNX Runtime; a thread that is ended in there takes the process with it. */
export type EnterNative = <Result>(work: () => Promise<Result>) => Promise<Result>;
