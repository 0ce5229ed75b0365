import { join } from 'node:path';
import type { WorkerOptions } from './protocol.ts';

/** This fusion turns x · sigmoid(x) in float64 graphs into an operator that has a float32 kernel only. */
const ALWAYS_OFF = ['QuickGeluFusion'];
const MERGES_REPEATS = 'CommonSubexpressionElimination';

const SPINNING = {
  'session.intra_op.allow_spinning': '1',
  'session.intra_op.spin_duration_us': '50',
  'session.force_spinning_stop': '1',
};

/**
 * Makes ONNX Runtime refuse a model of which it would compute a part on the CPU, with copies to and fro, in silence.
 */
const STRICT = { 'session.disable_cpu_ep_fallback': '1' };

/**
 * Entries of a session's configuration. How every session is set up was measured on 2 shared cores, ONNX Runtime 1.30:
 * - Threads that spin for as long as ONNX Runtime likes cost a factor of 1.3 (large products) to 3 (small ones) when
 *   anything else wants the cores, such as the threads of the next program. Those that spin for 50 µs and stop with the
 *   run are awake for the next operator: a training step is a tenth faster for the same processor time.
 * - The arena makes programs with large intermediate values 20 to 25 % faster and keeps their peak between runs.
 * - Memory patterns make nothing faster; with sizes that change from run to run they hold 60 % more.
 * - `session.set_denormal_as_zero` stays off: it reaches only the first thread of a process that makes a session, so
 *   results would depend on which thread computed them.
 */
export function configureSession({
  device,
  mergesRepeats = true,
}: Pick<WorkerOptions, 'device' | 'mergesRepeats'>): Readonly<Record<string, string>> {
  const disabled = [...ALWAYS_OFF, ...(mergesRepeats ? [] : [MERGES_REPEATS])];
  return {
    ...SPINNING,
    'optimization.disable_specified_optimizers': disabled.join(';'),
    ...(device === 'cpu' ? {} : STRICT),
  };
}

/** What the file of a program's profile begins with. */
export const nameProfile = (folder: string) => join(folder, 'program');
