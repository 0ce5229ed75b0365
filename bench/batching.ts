/**
 * What layouts of a step's rows cost: padding, and processor time of forward, loss and backward on a small student, for
 * rows whose lengths are log-normal (a file of lengths, a JSON array, may be given instead). All layouts take turns in
 * one process.
 *   node --import tsx bench/batching.ts bench/configs/qwen2-6m.json [lengths.json]
 */
import { readFile } from 'node:fs/promises';
import { describeParameters, parseModelConfig } from '@stillhouse/checkpoint';
import { packSequences, padSequences, type TokenBatch } from '@stillhouse/model-runner';
import { openEngine } from '@stillhouse/runtime';
import { createStudent, groupByLength, type MicroBatch, measureColumnCost } from '@stillhouse/student-trainer';
import { randomNormals, randomUniforms } from '@stillhouse/testing';

const STEP_TOKENS = 4096;
const [STEPS, ROUNDS] = [3, 3];
const [path, lengthsFile] = process.argv.slice(2) as [string, string?];
const config = parseModelConfig(JSON.parse(await readFile(path, 'utf8')), path);
const [normal, uniform] = [randomNormals(1), randomUniforms(2)];
const lengths: readonly number[] =
  lengthsFile === undefined
    ? Array.from({ length: 200 }, () => Math.min(2000, Math.max(8, Math.round(190 * Math.exp(0.5 * normal())))))
    : (JSON.parse(await readFile(lengthsFile, 'utf8')) as readonly number[]);

const specs = new Map(describeParameters(config).map(({ name, shape }) => [name, shape]));
const engine = await openEngine({ threads: 1 });
const student = await createStudent(engine, {
  config,
  float: 'float32',
  read: async (name) => {
    const shape = specs.get(name)!;
    const count = shape.reduce((product, dim) => product * dim, 1);
    return Float32Array.from({ length: count }, () => (shape.length === 1 ? 1 : 0.02 * normal()));
  },
  objective: { labels: { kind: 'none' }, divergence: { kind: 'forward-kl' } },
  scalars: { temperature: 1, alpha: 0, hiddenWeight: 0 },
  adamw: { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0, clip: 1 },
  vocabSize: config.vocabSize,
  chunkPositions: 128,
});

const columnCost = measureColumnCost(config);
const sequences = lengths.map((length) => Int32Array.from({ length }, () => Math.floor(uniform() * config.vocabSize)));
const steps: number[][] = [];
for (let row = 0; steps.length < STEPS && row < lengths.length; ) {
  const step: number[] = [];
  for (let tokens = 0; tokens < STEP_TOKENS && row < lengths.length; row++) {
    step.push(row);
    tokens += lengths[row]!;
  }
  steps.push(step);
}

/** Runs of rows in the order of the data, with about equal numbers of tokens. */
function inOrder(rows: readonly number[], parts: number): readonly (readonly number[])[] {
  const total = rows.reduce((sum, row) => sum + lengths[row]!, 0);
  const groups: number[][] = Array.from({ length: parts }, () => []);
  let before = 0;
  for (const row of rows) {
    groups[Math.min(parts - 1, Math.floor(((before + lengths[row]! / 2) / total) * parts))]!.push(row);
    before += lengths[row]!;
  }
  return groups.filter((group) => group.length > 0);
}
const byLength = (rows: readonly number[], parts: number) => groupByLength(rows, lengths, parts, columnCost);

const layouts: readonly (readonly [
  name: string,
  group: typeof inOrder,
  layOut: (sequences: readonly Int32Array[]) => TokenBatch,
])[] = [
  ['order of the data, padded', inOrder, padSequences],
  ['order of the data, packed to the longest', inOrder, packSequences],
  ['bucketed', byLength, padSequences],
  ['packed', byLength, (given) => packSequences(given, columnCost)],
];

console.log(`${path}: column cost ${columnCost.toExponential(2)}, ${STEPS} steps of ${STEP_TOKENS} tokens`);
for (const parts of [1, 4]) {
  const cpuMs = new Map<string, number[]>();
  const padding = new Map<string, number>();
  for (let round = 0; round <= ROUNDS; round++) {
    for (const [name, group, layOut] of layouts) {
      let [spent, tokens, computed] = [0, 0, 0];
      for (const rows of steps) {
        const microBatches = group(rows, parts).map((own): MicroBatch => {
          const given = own.map((row) => sequences[row]!);
          const batch = layOut(given);
          tokens += own.reduce((sum, row) => sum + lengths[row]!, 0);
          computed += batch.rows * batch.length;
          const labels = {
            count: own.length,
            rows: Int32Array.from(own.keys()),
            positions: new Int32Array(own.length),
            labels: new BigInt64Array(own.length),
            teacher: new Map(),
          };
          return { sequences: given, batch, labels };
        });
        const before = process.cpuUsage();
        await student.computeGradients(microBatches, rows.length);
        const { user, system } = process.cpuUsage(before);
        spent += (user + system) / 1000;
      }
      padding.set(name, 1 - tokens / computed);
      if (round > 0) cpuMs.set(name, [...(cpuMs.get(name) ?? []), spent]);
    }
  }
  const base = Math.min(...cpuMs.get(layouts[1]![0])!);
  for (const [name, times] of cpuMs) {
    const least = Math.min(...times);
    console.log(
      `accumulate ${parts} | ${name} | padding ${(100 * padding.get(name)!).toFixed(1)} % | ` +
        `${least.toFixed(0)} ms | ${(least / base).toFixed(2)}`,
    );
  }
}
await engine.close();
