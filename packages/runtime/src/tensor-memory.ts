import type { TensorData, TensorDtype } from '@stillhouse/tensor-types';
import type { Port, WorkerOptions } from './protocol.ts';

/** A loaded model with the tensors of one run, by port name; `shapes` are inputs in main memory. */
export interface BoundRun<Session> {
  readonly session: Session;
  readonly inputs: readonly (readonly [name: string, handle: number])[];
  readonly outputs: readonly (readonly [name: string, handle: number])[];
  readonly shapes: readonly (readonly [name: string, sizes: readonly number[]])[];
}

/**
 * Where an engine's tensors live, behind the handles that the main thread has. Called in strict order, one call at a
 * time. Three kinds: main memory, memory of a CUDA device, and buffers of a WebGPU device.
 */
export interface TensorMemory<Session> {
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
  run(run: BoundRun<Session>): Promise<void>;
  /** Ends a session as soon as nothing lives that it made. */
  release(session: Session): Promise<void>;
  /** Gives back what was freed and is still held. */
  collect(): void;
  /** Memory of a device that has its own: what is taken of it, by whomever, and all of it. */
  measureDevice?(): { readonly usedBytes: number; readonly totalBytes: number } | undefined;
  /** Ends everything. */
  close(): Promise<void>;
}

/** A model that is ready to run. */
export interface LoadedModel<Session> {
  readonly session: Session;
  readonly inputs: readonly Port[];
  readonly outputs: readonly Port[];
}

/** What a device brings: sessions of ONNX Runtime, and the memory in which their tensors are. */
export interface Backend<Session> {
  readonly memory: TensorMemory<Session>;
  /** @throws Error with ONNX Runtime's words */
  load(model: Uint8Array, options: WorkerOptions): Promise<LoadedModel<Session>>;
  /** Writes the session's profile, where one was asked for. */
  endProfiling(session: Session): void;
}

/** Runs what enters ONNX Runtime; a thread that is ended in there takes the process with it. */
export type EnterNative = <Result>(work: () => Promise<Result>) => Promise<Result>;
