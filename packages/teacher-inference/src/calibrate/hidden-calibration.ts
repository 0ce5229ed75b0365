import type { GraphBuilder } from '@stillhouse/onnx-graph';
import type { DeviceTensor, Engine, Program } from '@stillhouse/runtime';
import type { HiddenCodebook } from '@stillhouse/teacher-cache';
import type { TensorData } from '@stillhouse/tensor-types';
import {
  distributionsGraph,
  momentsGraph,
  productGraph,
  projectionGraph,
  weightedProductGraph,
} from './calibration-graphs.ts';
import { fitCodebook, fitTransform, type MultiplySquare, type Transform } from './codebook-fitting.ts';

export interface CodebookOptions {
  /** What a position is to take. */
  readonly codedBytes: number;
  /** For `final`: what turns states into distributions, and the temperatures that matter. */
  readonly readout?: { readonly head: DeviceTensor; readonly temperatures: readonly number[] };
}

/** Positions whose distributions give the metric; more change it by less than their own noise. */
const METRIC_POSITIONS = 512;
/** Positions that are looked at together. */
const BLOCK_POSITIONS = 64;
/** Rows of the output matrix in one product. */
const HEAD_CHUNK = 8192;
/** Positions that the step and the tables are fitted to. */
const SAMPLE_POSITIONS = 4096;
/**
 * The share of the positions, from the last ones, that the transform does not see. In a space of some thousand
 * dimensions it fits its own positions too well: on others the weak coordinates are several times as wide, and tables
 * that never saw that cost half as many bytes again.
 */
const HELD_OUT_SHARE = 0.25;
/** With fewer positions than that, all serve for everything. */
const LEAST_HELD_OUT = 64;

/**
 * The codebook of a layer, fitted to the states of the first shard.
 * @param states [positions, hiddenSize]
 */
export async function measureCodebook(
  engine: Engine,
  states: DeviceTensor,
  { codedBytes, readout }: CodebookOptions,
): Promise<HiddenCodebook> {
  const { transform, coordinates } = await measureTransform(engine, states, readout);
  return fitCodebook(transform, coordinates, codedBytes);
}

/** The transform of a layer, and the coordinates of a sample, to fit codebooks of any size to. */
export async function measureTransform(
  engine: Engine,
  states: DeviceTensor,
  readout: CodebookOptions['readout'],
): Promise<{ readonly transform: Transform; readonly coordinates: Float32Array }> {
  const [total, width] = states.shape as [number, number];
  const heldOut = Math.floor(total * HELD_OUT_SHARE);
  const positions = heldOut < LEAST_HELD_OUT ? total : total - heldOut;
  const fitted = engine.view(states, { offset: 0, shape: [positions, width] });
  const moments = await measureMoments(engine, fitted);
  const metric = readout && positions > 0 ? await measureMetric(engine, fitted, readout) : undefined;
  engine.free(fitted);
  const statistics = { width, positions, ...moments, ...(metric === undefined ? {} : { metric }) };
  const transform = await fitTransform(statistics, multiplyOn(engine, width));
  const from = positions === total ? 0 : positions;
  const others = engine.view(states, { offset: from * width, shape: [total - from, width] });
  const coordinates = await project(engine, others, transform);
  engine.free(others);
  return { transform, coordinates };
}

/** Evenly spaced blocks of positions, about `wanted` in all, every one if there are not more. */
function spreadBlocks(positions: number, wanted: number): readonly { readonly from: number; readonly size: number }[] {
  const blocks = Math.ceil(positions / BLOCK_POSITIONS);
  const taken = Math.min(blocks, Math.ceil(wanted / BLOCK_POSITIONS));
  return Array.from({ length: taken }, (_, i) => {
    const from = Math.floor((i * blocks) / taken) * BLOCK_POSITIONS;
    return { from, size: Math.min(BLOCK_POSITIONS, positions - from) };
  });
}

async function measureMoments(engine: Engine, states: DeviceTensor) {
  const [positions, width] = states.shape as [number, number];
  if (positions === 0) return { mean: new Float32Array(width), covariance: new Float64Array(width * width) };
  const first = engine.view(states, { offset: 0, shape: [width] });
  const origin = (await engine.download(first)) as Float32Array;
  const [sum, products] = await runOnce(engine, momentsGraph(width), { x: states, origin: first }, [
    ['sum', [width]],
    ['products', [width, width]],
  ]);
  engine.free(first);
  const offset = Float64Array.from(sum as Float32Array, (one) => one / positions);
  const covariance = Float64Array.from(
    products as Float32Array,
    (product, i) => product / positions - offset[Math.floor(i / width)]! * offset[i % width]!,
  );
  return { mean: Float32Array.from(origin, (value, i) => value + offset[i]!), covariance };
}

async function measureMetric(
  engine: Engine,
  states: DeviceTensor,
  { head, temperatures }: NonNullable<CodebookOptions['readout']>,
): Promise<Float64Array> {
  const [positions, width] = states.shape as [number, number];
  const vocabSize = head.shape[0]!;
  const metric = new Float64Array(width * width);
  const mass = new Float64Array(vocabSize);
  const distributions = await engine.compile(distributionsGraph(width, vocabSize, temperatures));
  let counted = 0;
  try {
    for (const { from, size } of spreadBlocks(positions, METRIC_POSITIONS)) {
      const x = engine.view(states, { offset: from * width, shape: [size, width] });
      const [chunkMass, outer] = await runCompiled(engine, distributions, { x, head }, [
        ['mass', [vocabSize]],
        ['outer', [width, width]],
      ]);
      engine.free(x);
      for (let i = 0; i < mass.length; i++) mass[i]! += Number(chunkMass![i]);
      for (let i = 0; i < metric.length; i++) metric[i]! -= Number(outer![i]);
      counted += size;
    }
  } finally {
    distributions.release();
  }
  const product = await engine.compile(weightedProductGraph(width));
  try {
    for (let from = 0; from < vocabSize; from += HEAD_CHUNK) {
      const size = Math.min(HEAD_CHUNK, vocabSize - from);
      const rows = engine.view(head, { offset: from * width, shape: [size, width] });
      const weights = Float32Array.from(mass.subarray(from, from + size));
      const [part] = await runCompiled(engine, product, { head: rows, mass: [weights, [size]] }, [
        ['product', [width, width]],
      ]);
      engine.free(rows);
      for (let i = 0; i < metric.length; i++) metric[i]! += Number(part![i]);
    }
  } finally {
    product.release();
  }
  return metric.map((value) => value / counted);
}

/** Coordinates at a step of 1 of some of the states, [sample, width]. */
async function project(engine: Engine, states: DeviceTensor, transform: Transform): Promise<Float32Array> {
  const [positions, width] = states.shape as [number, number];
  const { mean, encode } = transform;
  const program = await engine.compile(projectionGraph(width));
  const blocks = spreadBlocks(positions, SAMPLE_POSITIONS);
  const out = new Float32Array(blocks.reduce((sum, { size }) => sum + size * width, 0));
  let filled = 0;
  try {
    for (const { from, size } of blocks) {
      const x = engine.view(states, { offset: from * width, shape: [size, width] });
      const inputs = { x, mean: [mean, [width]], encode: [encode, [width, width]] } as const;
      const [coordinates] = await runCompiled(engine, program, inputs, [['coordinates', [size, width]]]);
      engine.free(x);
      out.set(coordinates as Float32Array, filled);
      filled += size * width;
    }
  } finally {
    program.release();
  }
  return out;
}

function multiplyOn(engine: Engine, width: number): MultiplySquare {
  return async (a, b, transA) => {
    const shape = [width, width];
    const [product] = await runOnce(engine, productGraph(width, transA), { a: [a, shape], b: [b, shape] }, [
      ['product', shape],
    ]);
    return product as Float32Array;
  };
}

type Inputs = Readonly<Record<string, DeviceTensor | readonly [Float32Array, readonly number[]]>>;
type Outputs = readonly (readonly [name: string, shape: readonly number[]])[];

async function runOnce(
  engine: Engine,
  graph: GraphBuilder,
  inputs: Inputs,
  outputs: Outputs,
): Promise<readonly TensorData[]> {
  const program = await engine.compile(graph);
  try {
    return await runCompiled(engine, program, inputs, outputs);
  } finally {
    program.release();
  }
}

/** Runs a program on tensors and arrays, and brings its outputs back. */
async function runCompiled(
  engine: Engine,
  program: Program,
  inputs: Inputs,
  outputs: Outputs,
): Promise<readonly TensorData[]> {
  const held: DeviceTensor[] = [];
  const hold = (tensor: DeviceTensor) => {
    held.push(tensor);
    return tensor;
  };
  try {
    const fed = Object.entries(inputs).map(([name, input]) => {
      if (!Array.isArray(input)) return [name, input as DeviceTensor] as const;
      const [data, shape] = input as readonly [Float32Array<ArrayBuffer>, readonly number[]];
      return [name, hold(engine.upload(data, 'float32', shape))] as const;
    });
    const results = outputs.map(([name, shape]) => [name, hold(engine.allocate('float32', shape))] as const);
    await engine.run([{ kind: 'run', program, inputs: Object.fromEntries(fed), outputs: Object.fromEntries(results) }]);
    return await engine.downloadMany(results.map(([, tensor]) => tensor));
  } finally {
    for (const tensor of held) engine.free(tensor);
  }
}
