import { join } from 'node:path';
import type { InferenceSession } from 'onnxruntime-node';
import type { WorkerOptions } from './protocol.ts';

/** This fusion turns x · sigmoid(x) in float64 graphs into an operator that has a float32 kernel only. */
const ALWAYS_OFF = ['QuickGeluFusion'];
const MERGES_REPEATS = 'CommonSubexpressionElimination';

/** Entries of a session's configuration that say which optimisers ONNX Runtime leaves out. */
export const configureOptimizers = (mergesRepeats: boolean) => ({
  'optimization.disable_specified_optimizers': [...ALWAYS_OFF, ...(mergesRepeats ? [] : [MERGES_REPEATS])].join(';'),
});

/** Makes ONNX Runtime refuse a model of which it would compute a part on the CPU, with copies to and fro, in silence. */
export const STRICT = { 'session.disable_cpu_ep_fallback': '1' } as const;

/** Entries of a session's configuration for the threads inside of operators. */
export const SPINNING = {
  'session.intra_op.allow_spinning': '1',
  'session.intra_op.spin_duration_us': '50',
  'session.force_spinning_stop': '1',
};

/**
 * With validation a dispatch that WebGPU forbids is an error. Without, which is ONNX Runtime's default, Dawn runs it
 * all the same, and a product that writes over its own operand comes out wrong.
 */
const WEBGPU = { name: 'webgpu', validationMode: 'basic' } as const;

/**
 * How every session is set up. Measured on 2 shared cores, ONNX Runtime 1.30:
 * - Threads that spin for as long as ONNX Runtime likes cost a factor of 1.3 (large products) to 3 (small ones) when
 *   anything else wants the cores, such as the threads of the next program. Those that spin for 50 µs and stop with the run
 *   are awake for the next operator: a training step is a tenth faster for the same processor time.
 * - The arena makes programs with large intermediate values 20 to 25 % faster and keeps their peak between runs.
 * - Memory patterns make nothing faster; with sizes that change from run to run they hold 60 % more.
 * - `session.set_denormal_as_zero` stays off: it reaches only the first thread of a process that makes a session, so
 *   results would depend on which thread computed them.
 */
export function createSessionOptions(
  options: WorkerOptions,
  configuration: Readonly<Record<string, string>> = {},
): InferenceSession.SessionOptions {
  return {
    executionProviders: [options.device === 'webgpu' ? WEBGPU : options.device],
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
    extra: nest({ ...SPINNING, ...configureOptimizers(options.mergesRepeats ?? true), ...configuration }),
  };
}

/**
 * How a session of a program is set up: on WebGPU outputs stay on the device, and what has no kernel there is refused,
 * or else ONNX Runtime would compute it on the CPU in silence, with copies to and fro.
 */
export function createProgramOptions(options: WorkerOptions): InferenceSession.SessionOptions {
  if (options.device !== 'webgpu') return createSessionOptions(options);
  const strict = createSessionOptions(options, STRICT);
  return { ...strict, preferredOutputLocation: 'gpu-buffer' };
}

/** What the file of a program's profile begins with. */
export const nameProfile = (folder: string) => join(folder, 'program');

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
