import type { Port, WorkerOptions } from '../protocol.ts';
import { configureSession, nameProfile } from '../session-options.ts';
import type { TensorDtype } from '../tensor.ts';
import type { LoadedModel } from '../tensor-memory.ts';
import { type Address, addressOf, addressRoom, NO_ADDRESS, pathOf, readText, textOf } from './foreign-functions.ts';
import type { OnnxRuntimeLibrary } from './onnxruntime-library.ts';

/** ONNX's element types (TensorProto.DataType) that tensors of ours have. */
const ELEMENT_TYPES: { readonly [Dtype in TensorDtype]: number } = {
  float32: 1,
  uint8: 2,
  int8: 3,
  uint16: 4,
  int32: 6,
  int64: 7,
  bool: 9,
  float16: 10,
  float64: 11,
};
const DTYPES = new Map(Object.entries(ELEMENT_TYPES).map(([dtype, type]) => [type, dtype]));

const LOG_FATAL = 4;
const OPTIMIZE_ALL = 99;

/** A model in ONNX Runtime with the tensors of its next run. */
export interface NativeSession {
  readonly session: Address;
  readonly binding: Address;
  /** Names of inputs and outputs as C takes them. */
  readonly names: ReadonlyMap<string, Buffer>;
}

/** What computes: the CPU, or a CUDA device whose work goes into a stream. */
export type NativeProvider =
  | { readonly kind: 'cpu' }
  | { readonly kind: 'cuda'; readonly stream: Address; readonly options: Readonly<Record<string, string>> };

/** Sessions of ONNX Runtime by its C API, on tensors that lie wherever they were said to. */
export interface NativeSessions {
  load(model: Uint8Array, options: WorkerOptions): LoadedModel<NativeSession>;
  /** A tensor (OrtValue) over memory that the caller holds for as long as the tensor lives. */
  wrap(at: Address, sizeBytes: number, dtype: TensorDtype, shape: readonly number[], place: 'host' | 'device'): Address;
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
  if (provider.kind === 'cuda') {
    // Fails in words where the provider cannot be loaded; what comes next would end the process.
    ort.release('sessionOptions', makeOptions({ threads: 1 }));
    // One arena for all programs, or each would keep the peak of its own intermediate values.
    const arena = ort.make('createArenaConfiguration', NO_ADDRESS, NO_ADDRESS, 0);
    ort.call(
      'createAndRegisterAllocator',
      environment,
      textOf('CUDAExecutionProvider'),
      deviceMemory,
      arena,
      NO_ADDRESS,
      NO_ADDRESS,
      0,
    );
    ort.release('arenaConfiguration', arena);
  }
  const runOptions = ort.make('createRunOptions');
  // What is queued in one stream is in order; who reads a result waits for the stream.
  ort.call('addRunConfigEntry', runOptions, textOf('disable_synchronize_execution_providers'), textOf('1'));

  function appendCuda(sessionOptions: Address, { stream, options }: Extract<NativeProvider, { kind: 'cuda' }>): void {
    const cudaOptions = ort.make('createCudaProviderOptions');
    try {
      const [keys, values] = [Object.keys(options), Object.values(options)].map((texts) => texts.map(textOf)) as [
        Buffer[],
        Buffer[],
      ];
      const list = (texts: readonly Buffer[]) => BigUint64Array.from(texts, addressOf);
      ort.call('updateCudaProviderOptions', cudaOptions, list(keys), list(values), keys.length);
      ort.call('updateCudaProviderOptionsWithValue', cudaOptions, textOf('user_compute_stream'), stream);
      ort.call('sessionOptionsAppendCuda', sessionOptions, cudaOptions);
    } finally {
      ort.release('cudaProviderOptions', cudaOptions);
    }
  }

  function makeOptions({
    threads,
    enableMemoryArena = true,
    mergesRepeats,
    profileFolder,
  }: Pick<WorkerOptions, 'threads'> & Partial<WorkerOptions>): Address {
    const made = ort.make('createSessionOptions');
    ort.call('setSessionGraphOptimizationLevel', made, OPTIMIZE_ALL);
    ort.call('setIntraOpNumThreads', made, threads);
    ort.call('setInterOpNumThreads', made, 1);
    ort.call('disableMemPattern', made);
    if (!enableMemoryArena) ort.call('disableCpuMemArena', made);
    ort.call('setSessionLogSeverityLevel', made, LOG_FATAL);
    if (profileFolder !== undefined) ort.call('enableProfiling', made, pathOf(nameProfile(profileFolder)));
    const entries = {
      ...configureSession({ device: provider.kind, mergesRepeats }),
      ...(provider.kind === 'cuda' ? { 'session.use_env_allocators': '1' } : {}),
    };
    for (const [key, value] of Object.entries(entries))
      ort.call('addSessionConfigEntry', made, textOf(key), textOf(value));
    if (provider.kind === 'cuda') appendCuda(made, provider);
    return made;
  }

  function describePorts(session: Address, role: 'Input' | 'Output'): readonly Port[] {
    const count = new BigUint64Array(1);
    ort.call(`sessionGet${role}Count`, session, count);
    return Array.from({ length: Number(count[0]) }, (_, i) => {
      const name = ort.make(`sessionGet${role}Name`, session, i, allocator);
      const type = ort.make(`sessionGet${role}TypeInfo`, session, i);
      try {
        return { name: readText(name), ...describeType(ort.make('castTypeInfoToTensorInfo', type)) };
      } finally {
        ort.release('typeInfo', type);
        ort.call('allocatorFree', allocator, name);
      }
    });
  }

  /** `info` is none for what is no tensor. */
  function describeType(info: Address): Omit<Port, 'name'> {
    if (info === NO_ADDRESS) return { dtype: 'not a tensor', shape: [] };
    const type = new Int32Array(1);
    ort.call('getTensorElementType', info, type);
    const rank = new BigUint64Array(1);
    ort.call('getDimensionsCount', info, rank);
    const [sizes, symbols] = [new BigInt64Array(Number(rank[0])), addressRoom(Number(rank[0]))];
    ort.call('getDimensions', info, sizes, sizes.length);
    ort.call('getSymbolicDimensions', info, symbols, symbols.length);
    return {
      dtype: DTYPES.get(type[0]!) ?? `ONNX's type ${type[0]}`,
      shape: Array.from(sizes, (size, axis) => (size >= 0n ? Number(size) : readText(symbols[axis]!))),
    };
  }

  return {
    load(model, options) {
      const sessionOptions = makeOptions(options);
      let session: Address;
      try {
        session = ort.make('createSessionFromArray', environment, model, model.byteLength, sessionOptions);
      } finally {
        ort.release('sessionOptions', sessionOptions);
      }
      const [inputs, outputs] = [describePorts(session, 'Input'), describePorts(session, 'Output')];
      const names = new Map([...inputs, ...outputs].map(({ name }) => [name, textOf(name)]));
      return { session: { session, binding: ort.make('createIoBinding', session), names }, inputs, outputs };
    },
    wrap(at, sizeBytes, dtype, shape, place) {
      const sizes = BigInt64Array.from(shape, BigInt);
      const memory = place === 'host' ? hostMemory : deviceMemory;
      const type = ELEMENT_TYPES[dtype];
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
