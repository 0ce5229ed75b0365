import { compileGraph } from '@stillhouse/decoder';
import type { DeviceTensor, Engine, TensorData } from '@stillhouse/runtime';
import { type HiddenCodebook, type HiddenLayer, isCodebook } from '@stillhouse/teacher-cache';
import { distributionsGraph, momentsGraph, productGraph, weightedProductGraph } from './calibration-graphs.ts';
import type { LayerScales } from './channel-rms.ts';
import { fitCodebook, fitTransform, type MultiplySquare } from './codebook-fitting.ts';

export interface CodebookOptions {
  /** What a position is to take. */
  readonly codedBytes: number;
  /** For `final`: what turns states into distributions, and the temperatures that matter. */
  readonly readout?: { readonly head: DeviceTensor; readonly temperatures: readonly number[] };
}

/** Positions whose distributions give the metric; more change it by less than their own noise. */
const METRIC_POSITIONS = 512;
const METRIC_CHUNK = 64;
/** Rows of the output matrix in one product. */
const HEAD_CHUNK = 8192;
/** Positions that the step and the tables are fitted to. */
const SAMPLE_POSITIONS = 4096;

/**
 * The codebook of a layer: what the cache has fixed, else fitted to these states, the first shard's, and fixed.
 * @param states [positions, hiddenSize]
 */
export async function fixCodebook(
  engine: Engine,
  scales: LayerScales,
  layer: HiddenLayer,
  states: DeviceTensor,
  options: CodebookOptions,
): Promise<HiddenCodebook> {
  const takeFixed = () => {
    const scale = scales.scale(layer);
    return scale !== undefined && isCodebook(scale) ? scale : undefined;
  };
  const known = takeFixed();
  if (known !== undefined) return known;
  const codebook = await measureCodebook(engine, states, options);
  await scales.setScale(layer, codebook);
  // Another builder of the same cache may have been first; then its codebook holds.
  return takeFixed() ?? codebook;
}

async function measureCodebook(
  engine: Engine,
  states: DeviceTensor,
  { codedBytes, readout }: CodebookOptions,
): Promise<HiddenCodebook> {
  const [positions, width] = states.shape as [number, number];
  const downloaded = (await engine.download(states)) as Float32Array;
  const moments = await measureMoments(engine, states, downloaded);
  const metric = readout && positions > 0 ? await measureMetric(engine, states, readout) : undefined;
  const statistics = { width, positions, ...moments, ...(metric === undefined ? {} : { metric }) };
  const transform = await fitTransform(statistics, multiplyOn(engine, width));
  const sample = spread(positions, SAMPLE_POSITIONS);
  return fitCodebook(transform, project(transform, downloaded, sample), codedBytes);
}

/** So many numbers below `count`, evenly spaced. */
function spread(count: number, wanted: number): readonly number[] {
  const taken = Math.min(count, wanted);
  return Array.from({ length: taken }, (_, i) => Math.floor((i * count) / taken));
}

async function measureMoments(engine: Engine, states: DeviceTensor, downloaded: Float32Array) {
  const [positions, width] = states.shape as [number, number];
  const mean = new Float64Array(width);
  for (let i = 0; i < downloaded.length; i++) mean[i % width]! += downloaded[i]! / positions;
  const origin = Float32Array.from(mean);
  if (positions === 0) return { mean: origin, covariance: new Float64Array(width * width) };
  const [sum, products] = await runOnce(engine, momentsGraph(width), { x: states, origin: [origin, [width]] }, [
    ['sum', [width]],
    ['products', [width, width]],
  ]);
  const covariance = Float64Array.from(products as Float32Array, (product, i) => {
    const [row, column] = [Math.floor(i / width), i % width];
    return (product - (Number(sum![row]) * Number(sum![column])) / positions) / positions;
  });
  return { mean: origin, covariance };
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
  const distributions = await compileGraph(engine, distributionsGraph(width, vocabSize, temperatures));
  const chunks = spread(Math.max(1, Math.floor(positions / METRIC_CHUNK)), METRIC_POSITIONS / METRIC_CHUNK);
  let counted = 0;
  try {
    for (const chunk of chunks) {
      const from = chunk * METRIC_CHUNK;
      const size = Math.min(METRIC_CHUNK, positions - from);
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
  const product = await compileGraph(engine, weightedProductGraph(width));
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

/** Coordinates at a step of 1 of some of the states. */
function project(
  { width, mean, encode }: { readonly width: number; readonly mean: Float32Array; readonly encode: Float32Array },
  states: Float32Array,
  positions: readonly number[],
): Float32Array {
  const out = new Float32Array(positions.length * width);
  const sums = new Float64Array(width);
  positions.forEach((position, n) => {
    sums.fill(0);
    for (let channel = 0; channel < width; channel++) {
      const centred = states[position * width + channel]! - mean[channel]!;
      const row = channel * width;
      for (let c = 0; c < width; c++) sums[c]! += centred * encode[row + c]!;
    }
    out.set(sums, n * width);
  });
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
  graph: Parameters<typeof compileGraph>[1],
  inputs: Inputs,
  outputs: Outputs,
): Promise<readonly TensorData[]> {
  const program = await compileGraph(engine, graph);
  try {
    return await runCompiled(engine, program, inputs, outputs);
  } finally {
    program.release();
  }
}

/** Runs a program on tensors and arrays, and brings its outputs back. */
async function runCompiled(
  engine: Engine,
  program: Awaited<ReturnType<typeof compileGraph>>,
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
