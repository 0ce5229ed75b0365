import type { InferenceSession } from 'onnxruntime-node';
import type { WorkerOptions } from '../protocol.ts';
import { configureSession, nameProfile } from '../session-options.ts';

/**
 * With validation a dispatch that WebGPU forbids is an error. Without, which is ONNX Runtime's default, Dawn runs it
 * all the same, and a product that writes over its own operand comes out wrong.
 */
const WEBGPU = { name: 'webgpu', validationMode: 'basic' } as const;

/**
 * Options of a session on WebGPU; its outputs come back in main memory, with `preferredOutputLocation` they stay on the
 * device.
 */
export function createWebGpuOptions(options: WorkerOptions): InferenceSession.SessionOptions {
  return {
    executionProviders: [WEBGPU],
    graphOptimizationLevel: 'all',
    executionMode: 'sequential',
    intraOpNumThreads: options.threads,
    interOpNumThreads: 1,
    enableCpuMemArena: options.enableMemoryArena,
    enableMemPattern: false,
    logSeverityLevel: 4,
    ...(options.profileFolder === undefined
      ? {}
      : { enableProfiling: true, profileFilePrefix: nameProfile(options.profileFolder) }),
    extra: nest(configureSession(options)),
  };
}

/** The binding wants `a.b.c` as `{a: {b: {c}}}`. */
function nest(flat: Readonly<Record<string, string>>): Record<string, unknown> {
  const root: Record<string, unknown> = {};
  for (const [path, value] of Object.entries(flat)) {
    const parts = path.split('.');
    const last = parts.pop()!;
    let node = root;
    for (const part of parts) {
      node[part] ??= {};
      node = node[part] as Record<string, unknown>;
    }
    node[last] = value;
  }
  return root;
}
