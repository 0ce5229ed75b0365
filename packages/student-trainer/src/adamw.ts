import { compileGraph } from '@stillhouse/decoder';
import { type FloatDtype, GraphBuilder } from '@stillhouse/onnx-graph';
import type { Call, DeviceTensor, Engine, Program } from '@stillhouse/runtime';
import { decays, type FloatData, type Parameter } from './parameters.ts';

export interface AdamWSettings {
  readonly beta1: number;
  readonly beta2: number;
  readonly epsilon: number;
  readonly weightDecay: number;
  /** Largest global gradient norm; larger gradients are scaled down to it. */
  readonly clip: number;
}

/** torch's clip_grad_norm_ divides by norm + this. */
const CLIP_EPSILON = 1e-6;

/**
 * Elements updated by one run on a CPU: small enough that a run's temporaries stay in cache, large enough to hide its
 * overhead. WebGPU has no such cache and copies parts of tensors: there a run updates a whole parameter.
 */
const CHUNK_ELEMENTS = 1 << 18;

/** Σ x² of a chunk, row by row: a GPU has a group of threads for each row. Input: x [rows, n]. Output: sum [1]. */
function sumOfSquaresGraph(float: FloatDtype): GraphBuilder {
  const g = new GraphBuilder('sum_of_squares', float);
  g.output('sum', g.reduceSum(g.reduceSumSquare(g.floatInput('x', ['rows', 'n']), [1]), [0], true));
  return g;
}

/**
 * AdamW with decoupled decay (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2) on a flat chunk, its scalars
 * gathered so that each element meets as few operators as can be: with b1, b2 the bias corrections,
 * m' / b1 / (√(v' / b2) + ε) = (√b2 / b1) · m' / (√v' + ε √b2). Outputs are meant to alias w, m and v: each is written by
 * the last operator that has read it.
 *
 * Scalars: keep = 1 - rate · decay, gain1 = clip · (1 - β1), gain2 = clip² · (1 - β2), floor = ε √b2, rate = lr √b2 / b1.
 */
function adamWGraph(float: FloatDtype, { beta1, beta2 }: AdamWSettings): GraphBuilder {
  const g = new GraphBuilder('adamw', float);
  const vector = (name: string) => g.floatInput(name, ['n']);
  const scalar = (name: string) => g.floatInput(name, []);
  const [w, gradient, m, v] = [vector('w'), vector('gradient'), vector('m'), vector('v')];
  const first = g.add(g.scale(m, beta1), g.mul(gradient, scalar('gain1')));
  const second = g.add(g.scale(v, beta2), g.mul(g.mul(gradient, gradient), scalar('gain2')));
  const step = g.mul(g.div(first, g.add(g.sqrt(second), scalar('floor'))), scalar('rate'));
  g.output('w.next', g.sub(g.mul(w, scalar('keep')), step));
  g.output('m.next', first);
  g.output('v.next', second);
  return g;
}

/** A parameter with Adam's running means of its gradient and of the gradient's square, of the same shape and dtype. */
interface WithMoments {
  readonly parameter: Parameter;
  readonly first: DeviceTensor;
  readonly second: DeviceTensor;
}

/** A tensor of the optimiser's state, by the name of its parameter. */
export interface StateTensor {
  readonly name: string;
  readonly tensor: DeviceTensor;
}

interface Chunk {
  readonly parameter: Parameter;
  readonly w: DeviceTensor;
  readonly gradient: DeviceTensor;
  /** The same gradient as a matrix. */
  readonly gradientRows: DeviceTensor;
  readonly m: DeviceTensor;
  readonly v: DeviceTensor;
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
  const [sumOfSquares, adamw] = (await Promise.all(
    [sumOfSquaresGraph(float), adamWGraph(float, settings)].map((graph) => compileGraph(engine, graph)),
  )) as [Program, Program];
  const moments = parameters.map((parameter): WithMoments => {
    const allocate = () => engine.allocate(float, parameter.shape);
    return { parameter, first: allocate(), second: allocate() };
  });
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
    ({ parameter, w, gradient, m, v }): Call => ({
      kind: 'run',
      program: adamw,
      inputs: { w, gradient, m, v, rate, gain1, gain2, floor, keep: decays(parameter) ? keepDecayed : keepAll },
      outputs: { 'w.next': w, 'm.next': m, 'v.next': v },
    }),
  );
  return {
    state: {
      firstMoments: moments.map(({ parameter: { name }, first }) => ({ name, tensor: first })),
      secondMoments: moments.map(({ parameter: { name }, second }) => ({ name, tensor: second })),
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

function cutIntoChunks(engine: Engine, { parameter, first, second }: WithMoments): readonly Chunk[] {
  const count = parameter.shape.reduce((product, dim) => product * dim, 1);
  const chunks: Chunk[] = [];
  const chunkElements = engine.device === 'webgpu' ? count : CHUNK_ELEMENTS;
  for (let offset = 0; offset < count; offset += chunkElements) {
    const size = Math.min(chunkElements, count - offset);
    const shape = [size];
    const rows = size === count && parameter.shape.length > 1 ? parameter.shape[0]! : 1;
    const part = (tensor: DeviceTensor) => engine.view(tensor, { offset, shape });
    chunks.push({
      parameter,
      w: part(parameter.weight),
      gradient: part(parameter.gradient),
      gradientRows: engine.view(parameter.gradient, { offset, shape: [rows, size / rows] }),
      m: part(first),
      v: part(second),
    });
  }
  return chunks;
}
