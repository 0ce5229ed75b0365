import { StillhouseError } from '@stillhouse/errors';
import { type FloatDtype, GraphBuilder } from '@stillhouse/onnx-graph';
import type { Call, DeviceTensor, Engine, Program } from '@stillhouse/runtime';
import { countElements } from '@stillhouse/tensor-types';
import { decays, type FloatData, type Parameter } from '../step/parameters.ts';
import {
  allocateMoment,
  BLOCK_ELEMENTS,
  emitMoment,
  formatOf,
  type MomentTensors,
  type OptimiserStateFormat,
} from './optimiser-state.ts';

export interface AdamWSettings {
  readonly beta1: number;
  readonly beta2: number;
  readonly epsilon: number;
  readonly weightDecay: number;
  /** Largest global gradient norm; larger gradients are scaled down to it. */
  readonly clip: number;
  /** How the moments are held between steps. Default `float32`. */
  readonly optimiserState?: OptimiserStateFormat;
}

/** torch's clip_grad_norm_ divides by norm + this. */
const CLIP_EPSILON = 1e-6;

/**
 * Elements updated by one run on a CPU: small enough that a run's temporaries stay in cache, large enough to hide its
 * overhead; a multiple of a block's. A GPU has no such cache, and WebGPU copies parts of tensors: there a run updates a
 * whole parameter.
 */
const CHUNK_ELEMENTS = 1 << 18;

/**
 * Above this a bfloat16 moment no longer decays: β v is nearer to v than to the number below it, which is up to 2⁻⁷ v
 * away.
 */
const LARGEST_BFLOAT16_BETA = 0.996;

/** The states of devices that have not all of them: WebGPU lacks the types, CUDA's kernels the bits of a bfloat16. */
const DEVICE_FORMATS: Readonly<Record<string, readonly OptimiserStateFormat[]>> = {
  webgpu: ['float32'],
  cuda: ['float32', 'int8'],
};

/** @throws StillhouseError OPTIMISER_STATE_TOO_COARSE, OPTIMISER_STATE_NOT_ON_DEVICE */
export function checkOptimiserState(
  { optimiserState = 'float32', beta1, beta2 }: Pick<AdamWSettings, 'optimiserState' | 'beta1' | 'beta2'>,
  device: string,
): void {
  if (optimiserState === 'float32') return;
  const formats = DEVICE_FORMATS[device];
  if (formats !== undefined && !formats.includes(optimiserState)) {
    throw new StillhouseError({
      code: 'OPTIMISER_STATE_NOT_ON_DEVICE',
      where: `--optimiser-state ${optimiserState}`,
      problem: 'the device has no operators for such numbers',
      expected: `${formats.join(' or ')} on ${device}`,
      got: optimiserState,
      remedy: 'Use --optimiser-state float32, or --device cpu',
    });
  }
  const [flag, beta] = beta2 > LARGEST_BFLOAT16_BETA ? ['--beta2', beta2] : ['--beta1', beta1];
  if (optimiserState !== 'bfloat16' || beta <= LARGEST_BFLOAT16_BETA) return;
  throw new StillhouseError({
    code: 'OPTIMISER_STATE_TOO_COARSE',
    where: `--optimiser-state bfloat16, ${flag}`,
    problem: 'a bfloat16 moment would stand still: what a step takes off is lost in rounding',
    expected: `at most ${LARGEST_BFLOAT16_BETA}`,
    got: String(beta),
    remedy: `Use --optimiser-state int8, whose scales are float32, or a smaller ${flag}`,
  });
}

/** Σ x² of a chunk, row by row: a GPU has a group of threads for each row. Input: x [rows, n]. Output: sum [1]. */
function sumOfSquaresGraph(float: FloatDtype): GraphBuilder {
  const g = new GraphBuilder('sum_of_squares', float);
  g.output('sum', g.reduceSum(g.reduceSumSquare(g.floatInput('x', ['rows', 'n']), [1]), [0], true));
  return g;
}

/**
 * AdamW with decoupled decay (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2) on a chunk [blocks, size], its
 * scalars gathered so that each element meets as few operators as can be: with b1, b2 the bias corrections,
 * m' / b1 / (√(v' / b2) + ε) = (√b2 / b1) · m' / (√v' + ε √b2). Outputs are meant to alias w, m and v: each is written
 * by the last operator that has read it.
 *
 * Scalars: keep = 1 - rate · decay, gain1 = clip · (1 - β1), gain2 = clip² · (1 - β2), floor = ε √b2, rate = lr √b2 /
 * b1.
 */
function adamWGraph(float: FloatDtype, { beta1, beta2 }: AdamWSettings, format: OptimiserStateFormat): GraphBuilder {
  const g = new GraphBuilder('adamw', float);
  const elements = (name: string) => g.floatInput(name, ['blocks', 'size']);
  const scalar = (name: string) => g.floatInput(name, []);
  const [w, gradient] = [elements('w'), elements('gradient')];
  const [m, v] = [emitMoment(g, format, 'first', 'm'), emitMoment(g, format, 'second', 'v')];
  const first = g.add(g.scale(m.value, beta1), g.mul(gradient, scalar('gain1')));
  const second = g.add(g.scale(v.value, beta2), g.mul(g.mul(gradient, gradient), scalar('gain2')));
  const step = g.mul(g.div(first, g.add(g.sqrt(second), scalar('floor'))), scalar('rate'));
  g.output('w.next', g.sub(g.mul(w, scalar('keep')), step));
  m.write(first);
  v.write(second);
  return g;
}

/** A parameter with Adam's running means of its gradient and of the gradient's square. */
interface WithMoments {
  readonly parameter: Parameter;
  readonly format: OptimiserStateFormat;
  readonly first: MomentTensors;
  readonly second: MomentTensors;
}

/** A tensor of the optimiser's state, by the name of its parameter; a scale has `.scale` behind it. */
export interface StateTensor {
  readonly name: string;
  readonly tensor: DeviceTensor;
}

interface Chunk {
  readonly parameter: Parameter;
  readonly format: OptimiserStateFormat;
  /** The gradient as a matrix. */
  readonly gradientRows: DeviceTensor;
  /** The tensors that the step reads, and those of them that it writes, by name. */
  readonly tensors: Readonly<Record<string, DeviceTensor>>;
  readonly outputs: Readonly<Record<string, DeviceTensor>>;
}

export interface AdamW {
  /** All that it remembers from step to step. */
  readonly state: { readonly firstMoments: readonly StateTensor[]; readonly secondMoments: readonly StateTensor[] };
  /** Σ of squares of all gradients, square root taken: the global norm before clipping. */
  gradientNorm(): Promise<number>;
  /**
   * Updates every parameter from its gradient.
   * @param step counts from 1
   */
  update(step: number, learningRate: number, gradientNorm: number): Promise<void>;
}

/** AdamW over the given parameters in place, its moments zero at first. Weights and moments never leave the device. */
export async function createAdamW(
  engine: Engine,
  parameters: readonly Parameter[],
  settings: AdamWSettings,
  float: FloatDtype,
): Promise<AdamW> {
  checkOptimiserState(settings, engine.device);
  const { optimiserState = 'float32' } = settings;
  const moments = parameters.map((parameter): WithMoments => {
    const format = formatOf(optimiserState, countElements(parameter.shape));
    const { shape } = parameter;
    const allocate = (moment: 'first' | 'second') => allocateMoment(engine, { format, moment, float, shape });
    return { parameter, format, first: allocate('first'), second: allocate('second') };
  });
  const sumOfSquares = await engine.compile(sumOfSquaresGraph(float));
  const programs = new Map<OptimiserStateFormat, Program>();
  for (const format of new Set(moments.map((one) => one.format))) {
    programs.set(format, await engine.compile(adamWGraph(float, settings, format)));
  }
  const chunks = moments.flatMap((one) => cutIntoChunks(engine, one));
  const sums = engine.allocate(float, [chunks.length]);
  const sumCalls = chunks.map(
    ({ gradientRows }, i): Call => ({
      kind: 'run',
      program: sumOfSquares,
      inputs: { x: gradientRows },
      outputs: { sum: engine.view(sums, { offset: i, shape: [1] }) },
    }),
  );
  const scalar = () => engine.allocate(float, []);
  const [rate, gain1, gain2, floor, keepAll, keepDecayed] = [
    scalar(),
    scalar(),
    scalar(),
    scalar(),
    scalar(),
    scalar(),
  ];
  engine.fill(keepAll, 1);
  const updateCalls = chunks.map(
    ({ parameter, format, tensors, outputs }): Call => ({
      kind: 'run',
      program: programs.get(format)!,
      inputs: { ...tensors, rate, gain1, gain2, floor, keep: decays(parameter) ? keepDecayed : keepAll },
      outputs,
    }),
  );
  return {
    state: {
      firstMoments: moments.flatMap(({ parameter: { name }, first }) => nameTensors(name, first)),
      secondMoments: moments.flatMap(({ parameter: { name }, second }) => nameTensors(name, second)),
    },
    async gradientNorm() {
      await engine.run(sumCalls);
      const squares = (await engine.download(sums)) as FloatData;
      return Math.sqrt(Array.from(squares).reduce((sum, one) => sum + one, 0));
    },
    async update(step, learningRate, norm) {
      const { beta1, beta2, epsilon, weightDecay, clip } = settings;
      const clipped = Math.min(1, clip / (norm + CLIP_EPSILON));
      const root = Math.sqrt(1 - beta2 ** step);
      engine.fill(rate, (learningRate * root) / (1 - beta1 ** step));
      engine.fill(gain1, clipped * (1 - beta1));
      engine.fill(gain2, clipped ** 2 * (1 - beta2));
      engine.fill(floor, epsilon * root);
      engine.fill(keepDecayed, 1 - learningRate * weightDecay);
      await engine.run(updateCalls);
    },
  };
}

const nameTensors = (name: string, { values, scale }: MomentTensors): readonly StateTensor[] =>
  scale === undefined
    ? [{ name, tensor: values }]
    : [
        { name, tensor: values },
        { name: `${name}.scale`, tensor: scale },
      ];

/** Chunks of whole blocks where there are blocks; what is left over is a chunk of one short block. */
function cutIntoChunks(engine: Engine, { parameter, format, first, second }: WithMoments): readonly Chunk[] {
  const count = countElements(parameter.shape);
  const blockSize = first.scale === undefined ? undefined : BLOCK_ELEMENTS;
  const chunks: Chunk[] = [];
  const chunkElements = engine.device === 'cpu' ? CHUNK_ELEMENTS : count;
  for (let offset = 0, size = 0; offset < count; offset += size) {
    const left = Math.min(chunkElements, count - offset);
    size = blockSize === undefined || left < blockSize ? left : left - (left % blockSize);
    const rows = size === count && parameter.shape.length > 1 ? parameter.shape[0]! : 1;
    const blocks = blockSize === undefined ? 1 : Math.ceil(size / blockSize);
    const part = (tensor: DeviceTensor) => engine.view(tensor, { offset, shape: [blocks, size / blocks] });
    const scaleOf = (name: string, { scale }: MomentTensors) =>
      scale === undefined || blockSize === undefined
        ? {}
        : { [`${name}.scale`]: engine.view(scale, { offset: offset / blockSize, shape: [blocks, 1] }) };
    const written = {
      w: part(parameter.weight),
      m: part(first.values),
      ...scaleOf('m', first),
      v: part(second.values),
      ...scaleOf('v', second),
    };
    chunks.push({
      parameter,
      format,
      gradientRows: engine.view(parameter.gradient, { offset, shape: [rows, size / rows] }),
      tensors: { ...written, gradient: part(parameter.gradient) },
      outputs: Object.fromEntries(Object.entries(written).map(([name, tensor]) => [`${name}.next`, tensor])),
    });
  }
  return chunks;
}
