import type { WorkerOptions } from '../protocol.ts';
import { configureSession, nameProfile } from '../session-options.ts';
import { type Address, addressOf, pathOf, textOf } from './foreign-functions.ts';
import type { OnnxRuntimeLibrary } from './onnxruntime-library.ts';

/** ONNX Runtime's level of messages that are printed: it throws what fails, and need not print it as well. */
export const LOG_FATAL = 4;
const OPTIMIZE_ALL = 99;

/** What computes: the CPU, or a CUDA device whose work goes into a stream. */
export type NativeProvider =
  | { readonly kind: 'cpu' }
  | { readonly kind: 'cuda'; readonly stream: Address; readonly options: Readonly<Record<string, string>> };

/** Options of a session (OrtSessionOptions), which the caller releases. */
export function makeSessionOptions(
  ort: OnnxRuntimeLibrary,
  provider: NativeProvider,
  options: Pick<WorkerOptions, 'threads'> & Partial<WorkerOptions>,
): Address {
  const { threads, enableMemoryArena = true, mergesRepeats, profileFolder } = options;
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
  for (const [key, value] of Object.entries(entries)) {
    ort.call('addSessionConfigEntry', made, textOf(key), textOf(value));
  }
  if (provider.kind === 'cuda') appendCuda(ort, made, provider);
  return made;
}

function appendCuda(
  ort: OnnxRuntimeLibrary,
  sessionOptions: Address,
  { stream, options }: Extract<NativeProvider, { kind: 'cuda' }>,
): void {
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
