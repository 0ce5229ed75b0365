/** Messages between the engine on the main thread and the worker that owns the sessions and the memory. */
import type { ProductPrecision } from '@stillhouse/onnx-graph';
import type { TensorData, TensorDtype } from '@stillhouse/tensor-types';

/** Dimensions: a number, the name of a symbol such as `batch`, or '' for an unknown one. */
export interface Port {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly (number | string)[];
}

export interface WorkerOptions {
  readonly device: 'cpu' | 'cuda' | 'webgpu';
  readonly threads: number;
  readonly precision: ProductPrecision;
  readonly enableMemoryArena: boolean;
  /** Whether nodes that compute the same are made one. Default true. */
  readonly mergesRepeats?: boolean | undefined;
  readonly profileFolder?: string | undefined;
}

/** Arrays of handles are in the order of the program's input and output names. */
export type WorkerCall =
  | {
      readonly kind: 'run';
      readonly program: number;
      readonly inputs: readonly number[];
      readonly outputs: readonly number[];
      /** Values of the program's shape inputs, in their order. */
      readonly shapes: readonly (readonly number[])[];
    }
  | { readonly kind: 'fill'; readonly tensor: number; readonly value: number }
  | { readonly kind: 'copy'; readonly from: number; readonly to: number };

/** Commands without an answer; a failure is told with the next answer. */
export type WorkerCommand =
  | {
      readonly kind: 'upload';
      readonly handle: number;
      readonly dtype: TensorDtype;
      readonly shape: readonly number[];
      readonly data: TensorData;
    }
  | {
      readonly kind: 'allocate';
      readonly handle: number;
      readonly dtype: TensorDtype;
      readonly shape: readonly number[];
    }
  | {
      readonly kind: 'view';
      readonly handle: number;
      readonly of: number;
      readonly offset: number;
      readonly shape: readonly number[];
    }
  | { readonly kind: 'write'; readonly tensor: number; readonly data: TensorData }
  | { readonly kind: 'free'; readonly handles: readonly number[]; readonly sizeBytes: number }
  | { readonly kind: 'release'; readonly program: number }
  | Exclude<WorkerCall, { kind: 'run' }>;

export type WorkerRequest =
  | { readonly kind: 'open'; readonly options: WorkerOptions }
  | {
      readonly kind: 'compile';
      readonly program: number;
      readonly name: string;
      readonly model: Uint8Array;
      readonly threads: number | undefined;
      readonly mergesRepeats: boolean | undefined;
    }
  | { readonly kind: 'run'; readonly calls: readonly WorkerCall[] }
  | { readonly kind: 'download'; readonly tensors: readonly number[] }
  | { readonly kind: 'memory' }
  | { readonly kind: 'close' };

export interface WorkerAnswers {
  readonly open: null;
  readonly compile: { readonly inputs: readonly Port[]; readonly outputs: readonly Port[] };
  readonly run: null;
  readonly download: readonly TensorData[];
  readonly memory: {
    readonly residentBytes: number;
    readonly peakRssBytes: number;
    readonly device: { readonly usedBytes: number; readonly totalBytes: number } | undefined;
  };
  readonly close: null;
}

export type ToWorker =
  | { readonly id: number; readonly request: WorkerRequest }
  | { readonly id: null; readonly command: WorkerCommand };

/** What went wrong in the worker; the engine makes a StillhouseError of it. */
export interface WorkerFailure {
  readonly code: string;
  readonly where: string;
  readonly problem: string;
  readonly remedy?: string;
}

export type FromWorker =
  | { readonly id: number; readonly answer: WorkerAnswers[keyof WorkerAnswers] }
  | { readonly id: number; readonly failure: WorkerFailure };

/** Shared with the worker: whether it is inside ONNX Runtime, and whether it must not enter it again. */
export const SHARED_STATE = { busy: 0, stop: 1, length: 2 } as const;
