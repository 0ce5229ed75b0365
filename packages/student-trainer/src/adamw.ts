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

/** Elements updated by one run: small enough that a run's temporaries stay in cache, large enough to hide its overhead. */
const CHUNK_ELEMENTS = 1 << 18;

/** Σ x² of a chunk. Input: x [n]. Output: sum [1]. */
function sumOfSquaresGraph(float: FloatDtype): GraphBuilder {
  const g = new GraphBuilder('sum_of_squares', float);
  g.output('sum', g.reduceSumSquare(g.floatInput('x', ['n']), [0], true));
  return g;
}

/**
 * AdamW with decoupled decay (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2) on a flat chunk:
 * w ← w (1 - decay) - rate · m' / bias1 / (√(v' / bias2) + ε). Outputs are meant to alias w, m and v: each is
 * written by the last operator that has read it.
 */
function adamWGraph(float: FloatDtype, { beta1, beta2, epsilon }: AdamWSettings): GraphBuilder {
  const g = new GraphBuilder('adamw', float);
  const [w, gradient, m, v] = ['w', 'gradient', 'm', 'v'].map((name) => g.floatInput(name, ['n']));
  const [rate, decay, bias1, bias2, clip] = ['rate', 'decay', 'bias1', 'bias2', 'clip'].map((name) =>
    g.floatInput(name, []),
  );
  const clipped = g.mul(gradient!, clip!);
  const first = g.add(g.scale(m!, beta1), g.scale(clipped, 1 - beta1));
  const second = g.add(g.scale(v!, beta2), g.scale(g.mul(clipped, clipped), 1 - beta2));
  const denominator = g.add(g.sqrt(g.div(second, bias2!)), g.scalar(epsilon));
  const step = g.mul(g.div(g.div(first, bias1!), denominator), rate!);
  g.output('w.next', g.sub(g.mul(w!, g.sub(g.scalar(1), decay!)), step));
  g.output('m.next', first);
  g.output('v.next', second);
  return g;
}

interface Chunk {
  readonly parameter: Parameter;
  readonly w: DeviceTensor;
  readonly gradient: DeviceTensor;
  readonly m: DeviceTensor;
  readonly v: DeviceTensor;
}

export interface AdamW {
  /** Σ of squares of all gradients, square root taken: the global norm before clipping. */
  gradientNorm(): Promise<number>;
  /**
   * Updates every parameter from its gradient.
   * @param step counts from 1
   */
  update(step: number, learningRate: number, gradientNorm: number): Promise<void>;
}

/** AdamW over all parameters in place. Weights and moments never leave the device. */
export async function createAdamW(
  engine: Engine,
  parameters: readonly Parameter[],
  settings: AdamWSettings,
  float: FloatDtype,
): Promise<AdamW> {
  const [sumOfSquares, adamw] = (await Promise.all(
    [sumOfSquaresGraph(float), adamWGraph(float, settings)].map((graph) => compileGraph(engine, graph)),
  )) as [Program, Program];
  const chunks = parameters.flatMap((parameter) => cutIntoChunks(engine, parameter));
  const sums = engine.allocate(float, [chunks.length]);
  const sumCalls = chunks.map(
    ({ gradient }, i): Call => ({
      kind: 'run',
      program: sumOfSquares,
      inputs: { x: gradient },
      outputs: { sum: engine.view(sums, { offset: i, shape: [1] }) },
    }),
  );
  const scalar = () => engine.allocate(float, []);
  const [rate, bias1, bias2, clip, noDecay, fullDecay] = [scalar(), scalar(), scalar(), scalar(), scalar(), scalar()];
  const updateCalls = chunks.map(
    ({ parameter, w, gradient, m, v }): Call => ({
      kind: 'run',
      program: adamw,
      inputs: { w, gradient, m, v, rate, bias1, bias2, clip, decay: decays(parameter) ? fullDecay : noDecay },
      outputs: { 'w.next': w, 'm.next': m, 'v.next': v },
    }),
  );
  return {
    async gradientNorm() {
      await engine.run(sumCalls);
      const squares = (await engine.download(sums)) as FloatData;
      return Math.sqrt(Array.from(squares).reduce((sum, one) => sum + one, 0));
    },
    async update(step, learningRate, norm) {
      const set = (tensor: DeviceTensor, value: number) => engine.fill(tensor, value);
      set(rate, learningRate);
      set(fullDecay, learningRate * settings.weightDecay);
      set(bias1, 1 - settings.beta1 ** step);
      set(bias2, 1 - settings.beta2 ** step);
      set(clip, Math.min(1, settings.clip / (norm + CLIP_EPSILON)));
      await engine.run(updateCalls);
    },
  };
}

function cutIntoChunks(engine: Engine, parameter: Parameter): readonly Chunk[] {
  const count = parameter.shape.reduce((product, dim) => product * dim, 1);
  const chunks: Chunk[] = [];
  for (let offset = 0; offset < count; offset += CHUNK_ELEMENTS) {
    const shape = [Math.min(CHUNK_ELEMENTS, count - offset)];
    const part = (tensor: DeviceTensor) => engine.view(tensor, { offset, shape });
    chunks.push({
      parameter,
      w: part(parameter.weight),
      gradient: part(parameter.gradient),
      m: part(parameter.firstMoment),
      v: part(parameter.secondMoment),
    });
  }
  return chunks;
}
