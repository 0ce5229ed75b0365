import { existsSync, readdirSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import {
  type Address,
  addressRoom,
  type ForeignArgument,
  type ForeignType,
  findFunction,
  functionAt,
  loadLibrary,
  NO_ADDRESS,
  readAddress,
  readText,
} from './foreign-functions.ts';

/** The C API has the functions below from this version on, ONNX Runtime 1.17. */
const API_VERSION = 17;

const p = 'pointer';

/**
 * Functions by their place in the struct OrtApi of onnxruntime_c_api.h, which grows at its end only. All give an
 * OrtStatus but for those that end something, which give nothing.
 */
const FUNCTIONS = {
  createEnv: [3, ['int', p, p]],
  createSessionFromArray: [8, [p, p, 'size_t', p, p]],
  createSessionOptions: [10, [p]],
  enableProfiling: [14, [p, p]],
  disableMemPattern: [17, [p]],
  disableCpuMemArena: [19, [p]],
  setSessionLogSeverityLevel: [22, [p, 'int']],
  setSessionGraphOptimizationLevel: [23, [p, 'int']],
  setIntraOpNumThreads: [24, [p, 'int']],
  setInterOpNumThreads: [25, [p, 'int']],
  sessionGetInputCount: [30, [p, p]],
  sessionGetOutputCount: [31, [p, p]],
  sessionGetInputTypeInfo: [33, [p, 'size_t', p]],
  sessionGetOutputTypeInfo: [34, [p, 'size_t', p]],
  sessionGetInputName: [36, [p, 'size_t', p, p]],
  sessionGetOutputName: [37, [p, 'size_t', p, p]],
  createRunOptions: [39, [p]],
  createTensorWithDataAsOrtValue: [49, [p, p, 'size_t', p, 'size_t', 'int', p]],
  castTypeInfoToTensorInfo: [55, [p, p]],
  getTensorElementType: [60, [p, p]],
  getDimensionsCount: [61, [p, p]],
  getDimensions: [62, [p, p, 'size_t']],
  getSymbolicDimensions: [63, [p, p, 'size_t']],
  createMemoryInfo: [68, [p, 'int', 'int', 'int', p]],
  createCpuMemoryInfo: [69, ['int', 'int', p]],
  allocatorFree: [76, [p, p]],
  getAllocatorWithDefaultOptions: [78, [p]],
  sessionEndProfiling: [110, [p, p, p]],
  addSessionConfigEntry: [130, [p, p, p]],
  runWithBinding: [133, [p, p, p]],
  createIoBinding: [134, [p, p]],
  bindInput: [136, [p, p, p]],
  bindOutput: [137, [p, p, p]],
  createArenaConfiguration: [164, [p, p, 'size_t', p]],
  addRunConfigEntry: [165, [p, p, p]],
  sessionOptionsAppendCuda: [204, [p, p]],
  createCudaProviderOptions: [205, [p]],
  updateCudaProviderOptions: [206, [p, p, p, 'size_t']],
  createAndRegisterAllocator: [259, [p, p, p, p, p, p, 'size_t']],
  updateCudaProviderOptionsWithValue: [263, [p, p, p]],
} as const satisfies Record<string, readonly [place: number, takes: readonly ForeignType[]]>;

const RELEASES = {
  session: 95,
  value: 96,
  typeInfo: 98,
  sessionOptions: 100,
  binding: 135,
  arenaConfiguration: 157,
  cudaProviderOptions: 208,
} as const;

const GET_ERROR_MESSAGE = 2;
const RELEASE_STATUS = 93;

export type OrtFunction = keyof typeof FUNCTIONS;

/** ONNX Runtime's C API. */
export interface OnnxRuntimeLibrary {
  /** Calls a function. @throws Error with ONNX Runtime's words where it fails */
  call(name: OrtFunction, ...given: readonly ForeignArgument[]): void;
  /** Calls a function whose last parameter is where it writes an address, and gives that. */
  make(name: OrtFunction, ...given: readonly ForeignArgument[]): Address;
  release(what: keyof typeof RELEASES, address: Address): void;
}

/** The folder of ONNX Runtime's libraries, instead of onnxruntime-node's own. */
export const LIBRARY_FOLDER_VARIABLE = 'STILLHOUSE_ONNXRUNTIME';

/** On Linux, macOS and Windows. */
const LIBRARY_NAME = /^(libonnxruntime\.so.*|libonnxruntime\..*dylib|onnxruntime\.dll)$/;

/** Where ONNX Runtime's libraries are, its providers beside it. */
export function findLibraryFolder(environment: Readonly<Record<string, string | undefined>> = process.env): string {
  const named = environment[LIBRARY_FOLDER_VARIABLE];
  if (named !== undefined && named !== '') return named;
  const main = createRequire(import.meta.url).resolve('onnxruntime-node');
  return join(dirname(main), `../bin/napi-v6/${process.platform}/${process.arch}`);
}

/** Whether ONNX Runtime's CUDA provider is installed, and in what words. */
export function findCudaProvider(folder = findLibraryFolder()): {
  readonly isPresent: boolean;
  readonly reason: string;
} {
  // An empty file only keeps it from being downloaded: bin/skip-cuda-download.js.
  const file = statSync(join(folder, 'libonnxruntime_providers_cuda.so'), { throwIfNoEntry: false });
  return (file?.size ?? 0) > 0
    ? { isPresent: true, reason: "ONNX Runtime's CUDA provider is installed" }
    : { isPresent: false, reason: "ONNX Runtime's CUDA provider is not installed" };
}

/** Loads ONNX Runtime from a folder. @throws Error in the loader's words, or when the version is too old */
export function loadOnnxRuntime(folder = findLibraryFolder()): OnnxRuntimeLibrary {
  const name = existsSync(folder) ? readdirSync(folder).find((file) => LIBRARY_NAME.test(file)) : undefined;
  if (name === undefined) throw new Error(`there is no library of ONNX Runtime in ${folder}`);
  const base = findFunction(loadLibrary(join(folder, name)), 'OrtGetApiBase', 'pointer', [])();
  const table = functionAt(readAddress(base, 0), 'pointer', ['uint'])(API_VERSION);
  if (table === NO_ADDRESS) throw new Error(`${name} is older than version 1.${API_VERSION}`);

  const errorMessage = functionAt(readAddress(table, GET_ERROR_MESSAGE), 'pointer', [p]);
  const releaseStatus = functionAt(readAddress(table, RELEASE_STATUS), 'void', [p]);
  const functions = Object.fromEntries(
    Object.entries(FUNCTIONS).map(([key, [place, takes]]) => [
      key,
      functionAt(readAddress(table, place), 'pointer', takes),
    ]),
  ) as Readonly<Record<OrtFunction, (...given: readonly ForeignArgument[]) => Address>>;
  const releases = Object.fromEntries(
    Object.entries(RELEASES).map(([key, place]) => [key, functionAt(readAddress(table, place), 'void', [p])]),
  ) as Readonly<Record<keyof typeof RELEASES, (address: Address) => void>>;

  const library: OnnxRuntimeLibrary = {
    call(key, ...given) {
      const status = functions[key](...given);
      if (status === NO_ADDRESS) return;
      const message = readText(errorMessage(status));
      releaseStatus(status);
      throw new Error(message);
    },
    make(key, ...given) {
      const room = addressRoom();
      library.call(key, ...given, room);
      return room[0]!;
    },
    release: (what, address) => releases[what](address),
  };
  return library;
}
