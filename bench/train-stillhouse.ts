/**
 * One training step of Stillhouse as peers/train_torch.py has it: full labels from random teacher states, AdamW, clip
 * 1. Run by train.ts; prints one JSON object. `--device webgpu` trains on a GPU.
 */
import { readFile } from 'node:fs/promises';
import { parseArgs } from 'node:util';
import { countParameters, describeParameters, parseModelConfig } from '@stillhouse/checkpoint';
import type { ProductPrecision } from '@stillhouse/onnx-graph';
import { type DeviceName, openEngine } from '@stillhouse/runtime';
import { createStudent, type MicroBatch } from '@stillhouse/student-trainer';
import { randomNormals } from '@stillhouse/testing';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    batch: { type: 'string', default: '8' },
    length: { type: 'string', default: '256' },
    steps: { type: 'string', default: '10' },
    'warm-up': { type: 'string', default: '2' },
    'teacher-hidden': { type: 'string' },
    'chunk-positions': { type: 'string', default: '256' },
    recompute: { type: 'boolean', default: false },
    threads: { type: 'string', default: '2' },
    device: { type: 'string', default: 'cpu' },
    precision: { type: 'string', default: 'float32' },
    profile: { type: 'string' },
  },
});
const path = positionals[0]!;
const config = parseModelConfig(JSON.parse(await readFile(path, 'utf8')), path);
const [batch, length, steps, warmUp] = [values.batch, values.length, values.steps, values['warm-up']].map(Number) as [
  number,
  number,
  number,
  number,
];
if (steps <= warmUp) {
  console.error(`--steps ${steps}: must be more than --warm-up ${warmUp}`);
  process.exit(2);
}
const width = Number(values['teacher-hidden'] ?? config.hiddenSize);
const normal = randomNormals(1);
const specs = new Map(describeParameters(config).map(({ name, shape }) => [name, shape]));
const normals = (count: number, scale: number) => {
  const out = new Float32Array(count);
  // Drawing a billion normals takes longer than the benchmark: a block of them repeats, with a shift.
  const block = Float32Array.from({ length: Math.min(count, 65_521) }, () => normal() * scale);
  for (let i = 0; i < count; i += block.length) out.set(block.subarray(0, Math.min(block.length, count - i)), i);
  return out;
};

const engine = await openEngine({
  threads: Number(values.threads),
  device: values.device as DeviceName,
  precision: values.precision as ProductPrecision,
  ...(values.profile === undefined ? {} : { profileFolder: values.profile }),
});
const startedAt = performance.now();
const student = await createStudent(engine, {
  config,
  float: 'float32',
  read: async (name) => {
    const shape = specs.get(name)!;
    const count = shape.reduce((product, dim) => product * dim, 1);
    return shape.length === 1
      ? new Float32Array(count).fill(name.endsWith('norm.weight') ? 1 : 0)
      : normals(count, 0.02);
  },
  objective: { labels: { kind: 'full', teacherHidden: width }, divergence: { kind: 'forward-kl' } },
  scalars: { temperature: 2, alpha: 0.7, hiddenWeight: 0 },
  adamw: { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1, clip: 1 },
  vocabSize: config.vocabSize,
  chunkPositions: Number(values['chunk-positions']),
  recompute: values.recompute,
  teacherHead: engine.upload(normals(config.vocabSize * width, 0.02), 'float32', [config.vocabSize, width], {
    transfer: true,
  }),
});
await engine.memory();
const setupMs = performance.now() - startedAt;

const sequences = Array.from({ length: batch }, () =>
  Int32Array.from({ length }, () => Math.floor(Math.abs(normal()) * 1e6) % config.vocabSize),
);
const count = batch * (length - 1);
const at = (n: number) => [Math.floor(n / (length - 1)), n % (length - 1)] as const;
const microBatch: MicroBatch = {
  sequences,
  labels: {
    count,
    rows: Int32Array.from({ length: count }, (_, n) => at(n)[0]),
    positions: Int32Array.from({ length: count }, (_, n) => at(n)[1]),
    labels: BigInt64Array.from({ length: count }, (_, n) => BigInt(sequences[at(n)[0]]![at(n)[1] + 1]!)),
    teacher: new Map([['teacher.hidden', { dtype: 'float32', data: normals(count * width, 1), width }]]),
  },
};
const stepMs: number[] = [];
const cpuMs: number[] = [];
const losses: number[] = [];
for (let step = 1; step <= steps; step++) {
  const stepStartedAt = performance.now();
  const before = process.resourceUsage();
  const { sums, gradientNorm } = await student.computeGradients([microBatch], count);
  await student.update(step, 1e-4, gradientNorm);
  stepMs.push(performance.now() - stepStartedAt);
  const after = process.resourceUsage();
  cpuMs.push((after.userCPUTime + after.systemCPUTime - before.userCPUTime - before.systemCPUTime) / 1000);
  losses.push(sums.loss);
}
const sorted = stepMs.slice(warmUp).sort((a, b) => a - b);
const medianMs = sorted[Math.floor(sorted.length / 2)]!;
const { peakRssBytes, device } = await engine.memory();
await engine.close();
console.log(
  JSON.stringify({
    device: engine.deviceReason,
    parameters: countParameters(config),
    tokensPerSecond: (1000 * batch * length) / medianMs,
    peakRssBytes,
    ...(device === undefined ? {} : { deviceBytes: device.usedBytes }),
    setupMs,
    stepMs: medianMs,
    cpuMs: Math.min(...cpuMs.slice(warmUp)),
    losses,
  }),
);
