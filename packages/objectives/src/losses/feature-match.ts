import { type FloatDtype, GraphBuilder, type Value } from '@stillhouse/onnx-graph';
import type { HiddenLayer } from '@stillhouse/teacher-cache';
import { outputGradients } from './loss-gradients.ts';

export type HiddenLoss = 'mse' | 'cosine';

/**
 * What is done to both sides before they are compared: `rms` divides each by its root mean square over the width,
 * `layer` first takes the mean over the width away (layer normalisation without gain, as Baevski et al. 2022, arXiv
 * 2202.03555, §3.3, do with their targets).
 */
export type FeatureNormalisation = 'none' | 'rms' | 'layer';

/** A state of the student that is to be like a state of the teacher. */
export interface FeatureMatch {
  readonly student: HiddenLayer;
  readonly teacher: HiddenLayer;
  readonly loss: HiddenLoss;
  readonly normalisation: FeatureNormalisation;
  readonly teacherHidden: number;
  /** Whether a learned linear layer [teacherHidden, H] stands between the two widths. */
  readonly hasProjection: boolean;
}

/** `6:7`: layer 6 of the student with layer 7 of the teacher. */
export const featureName = ({ student, teacher }: Pick<FeatureMatch, 'student' | 'teacher'>) => `${student}:${teacher}`;

/** Keeps the square root of a state that is all zeros, or the same everywhere, away from 0. */
const NORMALISATION_EPSILON = 1e-6;

export interface ComparedStates {
  /** [N, H] */
  readonly student: Value;
  /** [N, D] */
  readonly teacher: Value;
  /** [D, H]; left out when H = D and states are compared as they are. */
  readonly projection?: Value | undefined;
}

/**
 * Distance of two states at each position, [N]: `mse` is the mean over the width of (projection·student - teacher)²
 * (Jiao et al. 2020, arXiv 1909.10351, eq. 8), `cosine` is 1 - their cosine (Sanh et al. 2019, arXiv 1910.01108, §3);
 * both of the normalised sides. On `rms` sides `mse` is 2 (1 - cosine).
 */
export function emitHiddenLoss(
  g: GraphBuilder,
  { loss, normalisation }: Pick<FeatureMatch, 'loss' | 'normalisation'>,
  { student, teacher, projection }: ComparedStates,
): Value {
  const projected = projection === undefined ? student : g.gemm(student, projection, { transB: true });
  const [h, t] = [emitNormalised(g, normalisation, projected), emitNormalised(g, normalisation, teacher)];
  if (loss === 'mse') {
    const difference = g.sub(h, t);
    return g.reduceMean(g.mul(difference, difference), [1]);
  }
  const norm = (x: Value) => g.sqrt(g.reduceSumSquare(x, [1]));
  const cosine = g.div(g.reduceSum(g.mul(h, t), [1]), g.mul(norm(h), norm(t)));
  return g.sub(g.scalar(1), cosine);
}

function emitNormalised(g: GraphBuilder, normalisation: FeatureNormalisation, x: Value): Value {
  if (normalisation === 'none') return x;
  const centred = normalisation === 'layer' ? g.sub(x, g.reduceMean(x, [1], true)) : x;
  const meanSquare = g.reduceMean(g.mul(centred, centred), [1], true);
  return g.div(centred, g.sqrt(g.add(meanSquare, g.scalar(NORMALISATION_EPSILON))));
}

/**
 * What the graph of a match depends on besides the match: H, and the final norm where the student's state is `final`.
 */
export interface FeatureReadout {
  readonly hiddenSize: number;
  readonly rmsNormEpsilon: number;
}

/** Whose gradients the graph of a match gives besides the projection's; what is left out is no output. Default: all. */
export interface FeatureGradients {
  /** The student's state, as something before it learns. */
  readonly x?: boolean;
  readonly norm?: boolean;
}

/**
 * The distance of a student's states to a teacher's for a chunk of N label positions, and its gradients.
 *
 * L = weight · Σ_n weights[n] · distance_n, `weights` as in `lossGraph`: both share one denominator.
 *
 * Inputs: x [N, H] the student's state, for `final` the residual stream after the last layer, with norm [H]; teacher
 * [N, teacherHidden]; weights [N]; weight scalar; projection [teacherHidden, H] where there is one; accumulators
 * gradient.norm, gradient.projection.
 * Outputs: dx [N, H]; gradient.*.sum (meant to alias the accumulators), as far as `wanted`; sums float[2]: L and
 * Σ weights · distance.
 */
export function featureLossGraph(
  match: FeatureMatch,
  readout: FeatureReadout,
  float: FloatDtype,
  wanted: FeatureGradients = {},
): GraphBuilder {
  const g = new GraphBuilder('feature_loss', float);
  const { hiddenSize, rmsNormEpsilon } = readout;
  const { teacherHidden } = match;
  const x = g.floatInput('x', ['N', hiddenSize]);
  const teacher = g.floatInput('teacher', ['N', teacherHidden]);
  const weights = g.floatInput('weights', ['N']);
  const trained: [name: string, value: Value][] = [];
  let student = x;
  if (match.student === 'final') {
    const norm = g.floatInput('norm', [hiddenSize]);
    if (wanted.norm ?? true) trained.push(['norm', norm]);
    student = g.scope('final_norm', () => g.rmsNormalization(x, norm, rmsNormEpsilon));
  }
  const projection = match.hasProjection ? g.floatInput('projection', [teacherHidden, hiddenSize]) : undefined;
  if (projection !== undefined) trained.push(['projection', projection]);
  const distance = emitHiddenLoss(g, match, { student, teacher, projection });
  const sum = g.sumAll(g.mul(distance, weights));
  const total = g.mul(g.floatInput('weight', []), sum);
  outputGradients(g, total, (wanted.x ?? true) ? x : undefined, trained);
  g.output('sums', g.concat([g.reshape(total, [1]), g.reshape(sum, [1])], 0));
  return g;
}
