/**
 * Where a training step spends its time: milliseconds a step by program and operator, and outside of any operator.
 *   node --import tsx bench/train-profile.ts [CONFIG.json] [--top 12] [options of train-stillhouse.ts]
 * Times are ONNX Runtime's own (its profiler is on, which slows small programs a little). The first two steps are left
 * out: they are the first to touch what is kept, page by page.
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

interface ProfileEvent {
  readonly cat: string;
  readonly name: string;
  /** When it began and how long it took, in microseconds. */
  readonly ts: number;
  readonly dur: number;
  readonly args?: { readonly op_name?: string; readonly input_type_shape?: readonly object[] };
}

const here = new URL('.', import.meta.url).pathname;
const given = process.argv.slice(2);
const topAt = given.indexOf('--top');
const top = topAt < 0 ? 12 : Number(given.splice(topAt, 2)[1]);
const config = given[0]?.startsWith('-') === false ? given.shift()! : `${here}configs/qwen2-6m.json`;
const stepsAt = given.indexOf('--steps');
if (stepsAt < 0) given.push('--steps', '8');
const WARM_UP = 2;
const steps = Number(given[given.indexOf('--steps') + 1]) - WARM_UP;

const PRODUCTS = new Set(['Gemm', 'MatMul', 'FusedMatMul', 'FusedGemm']);
const folder = mkdtempSync(join(tmpdir(), 'stillhouse-profile-'));
try {
  const command = ['--import', 'tsx', `${here}train-stillhouse.ts`, config, ...given, '--profile', folder];
  process.stdout.write(execFileSync(process.execPath, command, { encoding: 'utf8' }));
  const perStep = (micros: number) => micros / 1000 / steps;
  const everywhere = new Map<string, number>();
  const add = (into: Map<string, number>, key: string, value: number) => into.set(key, (into.get(key) ?? 0) + value);
  for (const file of readdirSync(folder).sort()) {
    const events = JSON.parse(readFileSync(join(folder, file), 'utf8')) as readonly ProfileEvent[];
    const allRuns = events.filter(({ name }) => name === 'model_run').sort((a, b) => a.ts - b.ts);
    if (allRuns.length < steps) continue;
    const runs = allRuns.slice(Math.round((allRuns.length * WARM_UP) / (steps + WARM_UP)));
    const isCounted = ({ ts }: ProfileEvent) => ts >= runs[0]!.ts;
    const kernels = events.filter(
      (event) => event.cat === 'Node' && event.name.endsWith('_kernel_time') && isCounted(event),
    );
    const sum = (list: readonly ProfileEvent[]) => list.reduce((total, { dur }) => total + dur, 0);
    const groups = new Map<string, number>();
    for (const { dur, args } of kernels) {
      const op = args?.op_name ?? '';
      const shapes = PRODUCTS.has(op) ? JSON.stringify(args?.input_type_shape).replaceAll(/[^0-9,[\]]/g, '') : '';
      add(groups, `${op} ${shapes}`, dur);
      add(everywhere, PRODUCTS.has(op) ? 'products' : op, dur);
    }
    const outside = sum(runs) - sum(kernels);
    add(everywhere, '(outside of operators)', outside);
    console.log(
      `${file}: ${(runs.length / steps).toFixed(0)} runs, ${perStep(sum(runs)).toFixed(1)} ms a step, ` +
        `${perStep(outside).toFixed(1)} ms outside of operators`,
    );
    for (const [group, dur] of [...groups].sort((a, b) => b[1] - a[1]).slice(0, top)) {
      if (perStep(dur) >= 0.5) console.log(`  ${perStep(dur).toFixed(1).padStart(8)} ms ${group}`);
    }
  }
  console.log('all programs');
  for (const [group, dur] of [...everywhere].sort((a, b) => b[1] - a[1]).slice(0, 24)) {
    console.log(`  ${perStep(dur).toFixed(1).padStart(8)} ms ${group}`);
  }
} finally {
  rmSync(folder, { recursive: true });
}
