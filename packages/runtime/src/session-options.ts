import type { InferenceSession } from 'onnxruntime-node';
import type { WorkerOptions } from './protocol.ts';

/** How every session is set up. */
export function createSessionOptions(
  options: WorkerOptions,
  configuration: Readonly<Record<string, string>> = {},
): InferenceSession.SessionOptions {
  return {
    executionProviders: [options.device],
    graphOptimizationLevel: 'all',
    executionMode: 'sequential',
    intraOpNumThreads: options.threads,
    interOpNumThreads: 1,
    enableCpuMemArena: options.enableMemoryArena,
    enableMemPattern: options.enableMemoryArena,
    logSeverityLevel: 4,
    extra: nest({ 'session.force_spinning_stop': '1', 'session.set_denormal_as_zero': '1', ...configuration }),
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
