/**
 * Training tokens/s and peak memory against PyTorch in one run: same configuration, loss, optimiser and threads.
 *   node --import tsx bench/train.ts [CONFIG.json] [--batch 8] [--length 256] [--steps 8] [--teacher-hidden N]
 *     [--modes fp32,compile,bf16]
 *   node --import tsx bench/train.ts CONFIG.json --device cuda [--precisions tf32,bfloat16]
 *     [--modes tf32,bf16,bf16-compile] [--chunk-positions 1024]
 * STILLHOUSE_PYTHON names a Python with torch and transformers. Everything is run in turns, `--rounds` times, and the
 * better of each is printed, with its ratio to ours; processor time (of all threads, waiting in a spin counted) is that
 * of the step that took the least, and says more than the clock on a machine that does other work too.
 */
import { execFileSync } from 'node:child_process';
import { parseArgs } from 'node:util';

const here = new URL('.', import.meta.url).pathname;
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    batch: { type: 'string', default: '8' },
    length: { type: 'string', default: '256' },
    steps: { type: 'string', default: '8' },
    'teacher-hidden': { type: 'string' },
    modes: { type: 'string', default: 'fp32,compile,bf16' },
    device: { type: 'string', default: 'cpu' },
    precisions: { type: 'string', default: 'float32' },
    'chunk-positions': { type: 'string', default: '256' },
    rounds: { type: 'string', default: '2' },
  },
});
const python = process.env.STILLHOUSE_PYTHON;
if (python === undefined) {
  console.error('bench/train: STILLHOUSE_PYTHON is not set; see bench/README.md');
  process.exit(2);
}
const config = positionals[0] ?? `${here}configs/qwen2-6m.json`;
const shared = [
  '--batch',
  values.batch,
  '--length',
  values.length,
  '--steps',
  values.steps,
  ...(values['teacher-hidden'] === undefined ? [] : ['--teacher-hidden', values['teacher-hidden']]),
];

interface Measured {
  readonly tokensPerSecond: number;
  /** Processor time of a step. */
  readonly cpuMs: number;
  readonly peakRssBytes: number;
  /** Of a CUDA device: what is taken of its memory after the last step. */
  readonly deviceBytes?: number;
}
const run = (command: string, args: readonly string[]): Measured =>
  JSON.parse(
    execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })
      .trim()
      .split('\n')
      .at(-1)!,
  ) as Measured;

const train = (...more: readonly string[]) =>
  run(process.execPath, [
    ...['--import', 'tsx', `${here}train-stillhouse.ts`, config, ...shared, '--device', values.device],
    ...['--chunk-positions', values['chunk-positions'], ...more],
  ]);
const contenders: readonly [string, () => Measured][] = [
  ...values.precisions
    .split(',')
    .map((precision): [string, () => Measured] => [
      precision === 'float32' ? 'Stillhouse' : `Stillhouse ${precision}`,
      () => train('--precision', precision),
    ]),
  ...(values.device === 'cpu'
    ? [['Stillhouse, recompute', () => train('--recompute')] as [string, () => Measured]]
    : []),
  ...values.modes.split(',').map((mode): [string, () => Measured] => {
    const device = values.device === 'cpu' ? 'cpu' : 'cuda';
    const how = mode === 'tf32' ? ['--mode', 'fp32', '--tf32'] : ['--mode', mode];
    return [
      `PyTorch ${mode}`,
      () => run(python, [`${here}peers/train_torch.py`, config, ...how, '--device', device, ...shared]),
    ];
  }),
];
const best = new Map<string, Measured>();
for (let round = 0; round < Number(values.rounds); round++) {
  for (const [name, measure] of contenders) {
    try {
      const measured = measure();
      const before = best.get(name);
      best.set(name, {
        tokensPerSecond: Math.max(before?.tokensPerSecond ?? 0, measured.tokensPerSecond),
        cpuMs: Math.min(before?.cpuMs ?? Number.POSITIVE_INFINITY, measured.cpuMs),
        peakRssBytes: Math.min(before?.peakRssBytes ?? Number.POSITIVE_INFINITY, measured.peakRssBytes),
        ...(measured.deviceBytes === undefined ? {} : { deviceBytes: measured.deviceBytes }),
      });
    } catch (error) {
      console.error(`${name}: did not finish (${(error as Error).message.split('\n')[0]})`);
    }
  }
}
const ours = [...best].find(([name]) => name.startsWith('Stillhouse'))?.[1];
if (ours === undefined) throw new Error('Stillhouse did not finish');
console.log(
  '| | tokens/s | ours / theirs | CPU s a step | theirs / ours | peak memory, GB | device memory, GB ' +
    '|\n|---|---|---|---|---|---|---|',
);
for (const [name, { tokensPerSecond, cpuMs, peakRssBytes, deviceBytes }] of best) {
  const onDevice = deviceBytes === undefined ? '' : (deviceBytes / 1e9).toFixed(2);
  console.log(
    `| ${name} | ${tokensPerSecond.toFixed(0)} | ${(ours.tokensPerSecond / tokensPerSecond).toFixed(2)} | ` +
      `${(cpuMs / 1000).toFixed(2)} | ${(cpuMs / ours.cpuMs).toFixed(2)} | ${(peakRssBytes / 1e9).toFixed(2)} | ` +
      `${onDevice} |`,
  );
}
