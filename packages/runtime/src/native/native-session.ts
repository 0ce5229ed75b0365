import { ONNX_TYPES, type TensorDtype } from '@stillhouse/tensor-types';
import type { WorkerOptions } from '../protocol.ts';
import type { LoadedModel } from '../tensor-memory.ts';
import { type Address, NO_ADDRESS, textOf } from './foreign-functions.ts';
import { LOG_FATAL, makeSessionOptions, type NativeProvider } from './native-session-options.ts';
import type { OnnxRuntimeLibrary } from './onnxruntime-library.ts';
import { describePorts } from './session-ports.ts';

/** A model in ONNX Runtime with the tensors of its next run. */
export interface NativeSession {
  readonly session: Address;
  readonly binding: Address;
  /** Names of inputs and outputs as C takes them. */
  readonly names: ReadonlyMap<string, Buffer>;
}

export interface TensorLayout {
  readonly dtype: TensorDtype;
  readonly shape: readonly number[];
  readonly sizeBytes: number;
}

/** Sessions of ONNX Runtime by its C API, on tensors that lie wherever they were said to. */
export interface NativeSessions {
  load(model: Uint8Array, options: WorkerOptions): LoadedModel<NativeSession>;
  /** A tensor (OrtValue) over memory that the caller holds for as long as the tensor lives. */
  wrap(at: Address, tensor: TensorLayout, place: 'host' | 'device'): Address;
  unwrap(tensor: Address): void;
  /** Runs with tensors by port name. On a CUDA device the work is queued when this returns. */
  run(
    session: NativeSession,
    inputs: Iterable<readonly [name: string, tensor: Address]>,
    outputs: Iterable<readonly [name: string, tensor: Address]>,
  ): void;
  endProfiling(session: NativeSession): void;
  release(session: NativeSession): void;
}

export function createNativeSessions(ort: OnnxRuntimeLibrary, provider: NativeProvider): NativeSessions {
  const allocator = ort.make('getAllocatorWithDefaultOptions');
  const environment = ort.make('createEnv', LOG_FATAL, textOf('stillhouse'));
  const hostMemory = ort.make('createCpuMemoryInfo', 0, 0);
  const deviceMemory = provider.kind === 'cpu' ? hostMemory : ort.make('createMemoryInfo', textOf('Cuda'), 0, 0, 0);
  if (provider.kind === 'cuda') prepareCuda(ort, provider, { environment, deviceMemory });
  const runOptions = ort.make('createRunOptions');
  // What is queued in one stream is in order; who reads a result waits for the stream.
  ort.call('addRunConfigEntry', runOptions, textOf('disable_synchronize_execution_providers'), textOf('1'));
  return {
    load(model, options) {
      const sessionOptions = makeSessionOptions(ort, provider, options);
      let session: Address;
      try {
        session = ort.make('createSessionFromArray', environment, model, model.byteLength, sessionOptions);
      } finally {
        ort.release('sessionOptions', sessionOptions);
      }
      const inputs = describePorts(ort, allocator, session, 'Input');
      const outputs = describePorts(ort, allocator, session, 'Output');
      const names = new Map([...inputs, ...outputs].map(({ name }) => [name, textOf(name)]));
      return { session: { session, binding: ort.make('createIoBinding', session), names }, inputs, outputs };
    },
    wrap(at, { dtype, shape, sizeBytes }, place) {
      const sizes = BigInt64Array.from(shape, BigInt);
      const memory = place === 'host' ? hostMemory : deviceMemory;
      const type = ONNX_TYPES[dtype];
      return ort.make('createTensorWithDataAsOrtValue', memory, at, sizeBytes, sizes, sizes.length, type);
    },
    unwrap: (tensor) => ort.release('value', tensor),
    run({ session, binding, names }, inputs, outputs) {
      for (const [name, tensor] of inputs) ort.call('bindInput', binding, names.get(name)!, tensor);
      for (const [name, tensor] of outputs) ort.call('bindOutput', binding, names.get(name)!, tensor);
      ort.call('runWithBinding', session, runOptions, binding);
    },
    endProfiling({ session }) {
      ort.call('allocatorFree', allocator, ort.make('sessionEndProfiling', session, allocator));
    },
    release({ session, binding }) {
      ort.release('binding', binding);
      ort.release('session', session);
    },
  };
}

function prepareCuda(
  ort: OnnxRuntimeLibrary,
  provider: NativeProvider,
  { environment, deviceMemory }: { readonly environment: Address; readonly deviceMemory: Address },
): void {
  // Fails in words where the provider cannot be loaded; what comes next would end the process.
  ort.release('sessionOptions', makeSessionOptions(ort, provider, { threads: 1 }));
  // One arena for all programs, or each would keep the peak of its own intermediate values.
  const arena = ort.make('createArenaConfiguration', NO_ADDRESS, NO_ADDRESS, 0);
  const name = textOf('CUDAExecutionProvider');
  const nothing = [NO_ADDRESS, NO_ADDRESS, 0] as const;
  ort.call('createAndRegisterAllocator', environment, name, deviceMemory, arena, ...nothing);
  ort.release('arenaConfiguration', arena);
}
