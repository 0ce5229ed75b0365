import { type FloatDtype, GraphBuilder, type Value } from '@stillhouse/onnx-graph';
import {
  emitIsPresent,
  emitSampledDistributions,
  emitTopKDistributions,
  type TailKind,
} from '../labels/label-distributions.ts';
import { emitRefinedTeacher, type RefinementNormaliser } from '../labels/refined-distribution.ts';
import { type Divergence, emitDivergence, emitForwardKl, type LogDistributions } from './divergence.ts';
import type { FeatureMatch } from './feature-match.ts';
import { outputGradients } from './loss-gradients.ts';
import { emitCrossEntropy } from './token-losses.ts';

/** Which teacher labels the KL term reads. */
export type SoftLabels =
  | { readonly kind: 'none' }
  /**
   * The teacher's whole distribution, from its final hidden state [N, teacherHidden] and output matrix
   * [V, teacherHidden]; with `refinement` its head is taken from top-k labels. The width need not be the teacher's own:
   * of states h = B c, c with the matrix W B says the same.
   */
  | {
      readonly kind: 'full';
      readonly teacherHidden: number;
      readonly refinement?: Refinement;
      /** The states come as codes and a 1, and the matrix has the codebook in it: see `describeFullLabels`. */
      readonly isCoded?: boolean;
    }
  /** The teacher's k best ids; `isWhole` when k = V and nothing is outside. */
  | { readonly kind: 'topk'; readonly k: number; readonly tail: TailKind; readonly isWhole: boolean }
  /** Ids drawn from the teacher's distribution; as many entries as the arrays that come. */
  | { readonly kind: 'sampled' };

/** The head of full labels from exact top-k labels, of at most k entries a position. */
export interface Refinement {
  readonly k: number;
  readonly normaliser: RefinementNormaliser;
}

export interface Objective {
  readonly labels: SoftLabels;
  readonly divergence: Divergence;
  /** States of the student that are held to states of the teacher, each by a program of its own: `featureLossGraph`. */
  readonly features?: readonly FeatureMatch[];
  /** Whether they are all there is: then `lossGraph` has no part in it, and there are no labels. */
  readonly isFeaturesOnly?: boolean;
}

/**
 * What the student's readout looks like: H, V (rows of the output matrix that take part) and the final norm's epsilon.
 */
export interface Readout {
  readonly hiddenSize: number;
  readonly vocabSize: number;
  readonly rmsNormEpsilon: number;
}

/** Whose gradients the loss graph gives; what is left out is neither an input nor an output. Default: all. */
export interface LossGradients {
  /** The residual stream, as something before the final norm learns. */
  readonly x?: boolean;
  readonly norm?: boolean;
  readonly head?: boolean;
}

/**
 * Final norm, output matrix, loss and their gradients for a chunk of N label positions, so that logits [N, V] exist
 * for one chunk at a time and never leave the graph.
 *
 * L = Σ_n weights[n] · (alpha · T² · D + (1 - alpha) · CE), D the divergence (without soft labels: CE alone). `weights`
 * carries each position's weight over the sum of weights of the global batch, 1 / (number of target tokens) where all
 * weigh the same.
 *
 * Inputs: x [N, H] the residual stream after the last layer at the label positions; norm [H]; head [V, H]; labels
 * int64 [N, 1]; weights [N]; temperature, alpha scalars; teacher.* as the labels need; accumulators gradient.norm,
 * gradient.head.
 * Outputs: dx [N, H]; gradient.*.sum (meant to alias the accumulators), as far as `wanted`; sums float[3]: Σ weights ·
 * (L's own value, D without T², CE).
 */
export function lossGraph(
  objective: Objective,
  readout: Readout,
  float: FloatDtype,
  wanted: LossGradients = {},
): GraphBuilder {
  const g = new GraphBuilder('loss', float);
  const { hiddenSize, vocabSize } = readout;
  const x = g.floatInput('x', ['N', hiddenSize]);
  const norm = g.floatInput('norm', [hiddenSize]);
  const head = g.floatInput('head', [vocabSize, hiddenSize]);
  const weights = g.floatInput('weights', ['N']);
  const labels = g.input('labels', 'int64', ['N', 1]);
  const hidden = g.scope('final_norm', () => g.rmsNormalization(x, norm, readout.rmsNormEpsilon));
  const logits = g.scope('lm_head', () => g.gemm(hidden, head, { transB: true }));

  const trained: [name: string, value: Value][] = [];
  if (wanted.norm ?? true) trained.push(['norm', norm]);
  if (wanted.head ?? true) trained.push(['head', head]);
  const weigh = (perToken: Value) => g.sumAll(g.mul(perToken, weights));
  const ce = weigh(g.scope('ce', () => emitCrossEntropy(g, logits, labels)));
  let kl: Value | undefined;
  let total = ce;
  if (objective.labels.kind !== 'none') {
    const temperature = g.floatInput('temperature', []);
    const alpha = g.floatInput('alpha', []);
    kl = weigh(g.scope('kl', () => emitSoftLoss(g, objective, logits, temperature)));
    const squared = g.mul(temperature, temperature);
    total = g.add(g.mul(g.mul(alpha, squared), kl), g.mul(g.sub(g.scalar(1), alpha), ce));
  }
  outputGradients(g, total, (wanted.x ?? true) ? x : undefined, trained);
  const sums = [total, kl ?? g.scalar(0), ce];
  g.output(
    'sums',
    g.concat(
      sums.map((sum) => g.reshape(sum, [1])),
      0,
    ),
  );
  return g;
}

/** What distributions over the vocabulary depend on besides the labels. */
export interface TemperedStudent {
  /** [N, V] of the student. */
  readonly logits: Value;
  /** A scalar. */
  readonly temperature: Value;
}

/** The per-position divergence, [N], of the objective's soft labels; makes the inputs `teacher.*` that it reads. */
export function emitSoftLoss(
  g: GraphBuilder,
  { labels, divergence }: Objective,
  logits: Value,
  temperature: Value,
): Value {
  if (labels.kind === 'full' && divergence.kind === 'forward-kl') {
    return emitForwardKl(g, emitFullTeacher(g, labels, { logits, temperature }, false), logits, temperature);
  }
  // What the forward KL reads as nothing at all would be infinitely unlikely to the reverse one.
  const distributions = emitSoftDistributions(
    g,
    labels,
    { logits, temperature },
    { floorsTail: divergence.kind === 'reverse-kl' },
  );
  return emitDivergence(g, divergence, distributions);
}

/**
 * Log-probability of a tail whose mass was lost to rounding, where a logarithm of it is needed: half the distance
 * between 1 and the float32 below it.
 */
export const LOST_TAIL_LOGPROB = Math.log(2 ** -25);

/**
 * Both sides of the divergence, [N, E]: E are all ids for full labels, otherwise the entries and the tail where there
 * is one. Makes the inputs `teacher.*` that the labels read.
 * @param floorsTail whether a tail that was lost to rounding counts as `LOST_TAIL_LOGPROB` and not as absent
 */
export function emitSoftDistributions(
  g: GraphBuilder,
  labels: SoftLabels,
  { logits, temperature }: TemperedStudent,
  { floorsTail = false }: { readonly floorsTail?: boolean } = {},
): LogDistributions {
  switch (labels.kind) {
    case 'none':
      throw new Error('an objective without soft labels has no divergence');
    case 'full':
      return {
        teacher: emitFullTeacher(g, labels, { logits, temperature }, floorsTail),
        student: g.logSoftmax(g.mul(logits, g.reciprocal(temperature)), 1),
      };
    case 'topk': {
      const topk = {
        ...topKInputs(g, labels.k),
        tailLogprob: labels.isWhole || labels.tail.startsWith('renormalise') ? undefined : emitTailInput(g, floorsTail),
      };
      return emitTopKDistributions(g, logits, topk, { tail: labels.tail, temperature });
    }
    case 'sampled': {
      const samples = {
        ids: g.input('teacher.sampled_ids', 'int64', ['N', 'K']),
        logWeights: g.floatInput('teacher.sampled_logweights', ['N', 'K']),
      };
      return emitSampledDistributions(g, logits, samples, temperature);
    }
  }
}

/** The teacher's log-probabilities over the whole vocabulary at temperature T, [N, V]. */
function emitFullTeacher(
  g: GraphBuilder,
  { teacherHidden, refinement }: Extract<SoftLabels, { kind: 'full' }>,
  { logits, temperature }: TemperedStudent,
  floorsTail: boolean,
): Value {
  const final = g.floatInput('teacher.hidden', ['N', teacherHidden]);
  const head = g.floatInput('teacher.head', [logits.shape[1]!, teacherHidden]);
  const emitLogits = (states: Value) => g.scope('teacher_head', () => g.gemm(states, head, { transB: true }));
  // Tempered states give tempered logits, and are fewer.
  if (refinement === undefined) return g.logSoftmax(emitLogits(g.mul(final, g.reciprocal(temperature))), 1);
  const { k, normaliser } = refinement;
  // A computed normaliser finds a lost tail again in the teacher's logits.
  const tailLogprob = emitTailInput(g, floorsTail && normaliser === 'stored');
  const topk = { ...topKInputs(g, k), tailLogprob };
  return g.scope('refined', () => emitRefinedTeacher(g, emitLogits(final), topk, { normaliser, temperature }));
}

function emitTailInput(g: GraphBuilder, floorsTail: boolean): Value {
  const tail = g.floatInput('teacher.tail_logprob', ['N']);
  return floorsTail ? g.where(emitIsPresent(g, tail), tail, g.scalar(LOST_TAIL_LOGPROB)) : tail;
}

const topKInputs = (g: GraphBuilder, k: number) => ({
  ids: g.input('teacher.topk_ids', 'int64', ['N', k]),
  logprobs: g.floatInput('teacher.topk_logprobs', ['N', k]),
});
