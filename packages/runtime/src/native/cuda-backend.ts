import { readOwnModel } from '../own-models.ts';
import type { WorkerOptions } from '../protocol.ts';
import type { Backend, EnterNative } from '../tensor-memory.ts';
import { openCudaDevice } from './cuda-driver.ts';
import { createNativeMemory } from './native-memory.ts';
import { createNativeSessions, type NativeSession } from './native-session.ts';
import { loadOnnxRuntime } from './onnxruntime-library.ts';

/**
 * The first CUDA device. onnxruntime-node cannot keep tensors there between runs, so this calls the C API of its
 * library.
 * @throws Error with the words of the loader, the driver or ONNX Runtime where it does not work
 */
export async function openCudaBackend(
  enterNative: EnterNative,
  options: WorkerOptions,
): Promise<Backend<NativeSession>> {
  const backend = await enterNative(async (): Promise<Backend<NativeSession>> => {
    const ort = loadOnnxRuntime();
    const device = openCudaDevice();
    const sessions = createNativeSessions(ort, {
      kind: 'cuda',
      stream: device.stream,
      options: { device_id: '0', use_tf32: options.precision === 'float32' ? '0' : '1' },
    });
    return {
      memory: createNativeMemory(device, sessions, enterNative),
      load: (model, given) => enterNative(async () => sessions.load(model, given)),
      endProfiling: (session) => sessions.endProfiling(session),
    };
  });
  await multiplyOnce(backend, options);
  return backend;
}

/** Runs one product, to learn whether the device and its libraries do what they say. */
async function multiplyOnce({ memory, load }: Backend<NativeSession>, options: WorkerOptions): Promise<void> {
  // Handles of the main thread count from 1.
  const [a, c] = [-1, -2];
  const { session } = await load(readOwnModel('matmul'), { ...options, profileFolder: undefined });
  await memory.upload(a, 'float32', [1, 1], Float32Array.of(3));
  await memory.allocate(c, 'float32', [1, 1]);
  const inputs = ['a', 'b'].map((name) => [name, a] as const);
  await memory.run({ session, inputs, outputs: [['c', c]], shapes: [] });
  const [product] = await memory.download(c);
  if (product !== 9) throw new Error(`3 times 3 came out as ${product}`);
  await memory.free([a, c], 0);
  await memory.release(session);
}
