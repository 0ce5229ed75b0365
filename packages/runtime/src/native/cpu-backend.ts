import type { Backend, EnterNative } from '../tensor-memory.ts';
import { openHostDevice } from './host-device.ts';
import { createNativeMemory } from './native-memory.ts';
import { createNativeSessions, type NativeSession } from './native-session.ts';
import { loadOnnxRuntime } from './onnxruntime-library.ts';

/**
 * The CPU. By the C API rather than onnxruntime-node, whose tensors are arrays of JavaScript: those are not aligned to
 * the widest registers, come back when V8 collects them, and every output is copied into a new one.
 */
export async function openCpuBackend(enterNative: EnterNative): Promise<Backend<NativeSession>> {
  const sessions = await enterNative(async () => createNativeSessions(loadOnnxRuntime(), { kind: 'cpu' }));
  return {
    memory: createNativeMemory(openHostDevice(), sessions, enterNative),
    load: (model, options) => enterNative(async () => sessions.load(model, options)),
    endProfiling: (session) => sessions.endProfiling(session),
  };
}
