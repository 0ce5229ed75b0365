import {
  emitCrossEntropy,
  emitDivergence,
  emitIsPresent,
  emitLogSumExp,
  emitRowSum,
  emitSoftDistributions,
  REMOVED_SCORE,
  type SoftLabels,
} from '@stillhouse/objectives';
import { differentiate, type FloatDtype, GraphBuilder, type Value } from '@stillhouse/onnx-graph';

/** Logits of N positions. Inputs: hidden [N, H], head [V, H]. Output: logits [N, V]. */
export function logitsGraph(hiddenSize: number, vocabSize: number, float: FloatDtype): GraphBuilder {
  const g = new GraphBuilder('logits', float);
  const hidden = g.floatInput('hidden', ['N', hiddenSize]);
  g.output('logits', g.gemm(hidden, g.floatInput('head', [vocabSize, hiddenSize]), { transB: true }));
  return g;
}

/** Cross-entropy of N positions at T = 1. Inputs: logits [N, V], labels int64 [N]. Output: nll [N] in nats. */
export function crossEntropyGraph(vocabSize: number, float: FloatDtype): GraphBuilder {
  const g = new GraphBuilder('cross_entropy', float);
  const logits = g.floatInput('logits', ['N', vocabSize]);
  g.output('nll', emitCrossEntropy(g, logits, g.input('labels', 'int64', ['N'])));
  return g;
}

/** What `qualityGraph` gives of a position, in the order of its columns; numbers in nats, or probabilities. */
export const QUALITY_COLUMNS = [
  /** The divergence of the labels, as the trainer has it without T². */
  'loss',
  /** KL(teacher‖student). */
  'exactLoss',
  /**
   * |exact gradient|², |gradient of the labels|², |their difference|². Their product follows from these, and a
   * cosine near 1 is then as exact as the difference.
   */
  'exactNorm',
  'labelNorm',
  'difference',
  /** True probability of the ids that the labels name. */
  'retained',
  /** Probability that the labels give their most probable id, and its true one. */
  'confidence',
  'truth',
  /** KL(teacher‖labels), 0 where it has no meaning. */
  'divergence',
  /** -log of the labels' probability of the next token, 0 where it has no meaning. */
  'nll',
] as const;
export type QualityColumn = (typeof QUALITY_COLUMNS)[number];
/** The columns over all positions. */
export type QualityValues = Readonly<Record<QualityColumn, Float64Array>>;

/** Whether labels say something of every id, so that a divergence from them is finite. */
export const coversVocabulary = (labels: SoftLabels): boolean =>
  labels.kind === 'full' || (labels.kind === 'topk' && !labels.tail.startsWith('renormalise'));

/**
 * A cached mass below this is as good as none to a float32; logarithms of it are cut there, for the true mass
 * outside, as small as it is, must not meet a logarithm that stands for nothing.
 */
const LEAST_TAIL_LOGPROB = Math.log(1e-8);

/**
 * Everything about N positions of labels at a temperature that needs logits: they stay on the device.
 *
 * The gradient is that of `emitSoftDistributions`' forward KL by the student's logits, so it is the trainer's by
 * construction; the exact one is (q - p) / T. Labels that leave the shape of the tail open are completed by the same
 * probability for every id that they do not name: the distribution of largest entropy among those they allow.
 *
 * Inputs: student, teacher [N, V] logits; labels int64 [N]; temperature; `teacher.*` as the labels need.
 * Output: figures [N, QUALITY_COLUMNS].
 */
export function qualityGraph(soft: SoftLabels, vocabSize: number, float: FloatDtype): GraphBuilder {
  const g = new GraphBuilder(`quality_${soft.kind}`, float);
  const student = g.floatInput('student', ['N', vocabSize]);
  const truth = g.floatInput('teacher', ['N', vocabSize]);
  const targets = g.reshape(g.input('labels', 'int64', ['N']), ['N', 1]);
  const temperature = g.floatInput('temperature', []);
  const soften = (logits: Value) => {
    const scaled = g.div(logits, temperature);
    return g.sub(scaled, emitLogSumExp(g, scaled));
  };
  const exact = { teacher: soften(truth), student: soften(student) };
  const p = g.exp(exact.teacher);
  const labels = emitSoftDistributions(g, soft, { logits: student, temperature });
  const loss = emitDivergence(g, { kind: 'forward-kl' }, labels);
  const seeds: [Value, Value][] = [[g.sumAll(loss), g.scalar(1)]];
  const gradient = differentiate(g, { seeds, withRespectTo: [student] }).get(student)!;
  const exactGradient = g.div(g.sub(g.exp(exact.student), p), temperature);
  const columns: Record<QualityColumn, Value> = {
    loss,
    exactLoss: emitKl(g, exact.teacher, exact.student),
    exactNorm: emitSquare(g, exactGradient),
    labelNorm: emitSquare(g, gradient),
    difference: emitSquare(g, g.sub(gradient, exactGradient)),
    ...(soft.kind === 'full'
      ? describeWhole(g, labels.teacher, exact.teacher, targets)
      : describeEntries(g, soft, { label: labels.teacher, truth: exact.teacher, targets, vocabSize })),
  };
  g.output(
    'figures',
    g.concat(
      QUALITY_COLUMNS.map((name) => g.reshape(columns[name], ['N', 1])),
      1,
    ),
  );
  return g;
}

const emitSquare = (g: GraphBuilder, x: Value) => emitRowSum(g, g.mul(x, x));
const emitKl = (g: GraphBuilder, logP: Value, logQ: Value) => emitRowSum(g, g.mul(g.exp(logP), g.sub(logP, logQ)));

type Description = Pick<Record<QualityColumn, Value>, 'retained' | 'confidence' | 'truth' | 'divergence' | 'nll'>;

const pick = (g: GraphBuilder, values: Value, indices: Value) => g.gatherElements(values, indices, 1);
const bestOf = (g: GraphBuilder, logprobs: Value) => g.reshape(g.argMax(logprobs, 1), ['N', 1]);

/** Labels that give every id its own probability. */
function describeWhole(g: GraphBuilder, label: Value, truth: Value, targets: Value): Description {
  const best = bestOf(g, label);
  return {
    retained: g.expand(g.scalar(1), ['N']),
    confidence: g.exp(pick(g, label, best)),
    truth: g.exp(pick(g, truth, best)),
    divergence: emitKl(g, truth, label),
    nll: g.neg(pick(g, label, targets)),
  };
}

/** Log-probabilities of the labels and of the teacher, [N, entries] and [N, V], and the next tokens, [N, 1]. */
interface LabelEntries {
  readonly label: Value;
  readonly truth: Value;
  readonly targets: Value;
  readonly vocabSize: number;
}

/** Labels of some ids, and perhaps one number for all others. */
function describeEntries(
  g: GraphBuilder,
  soft: SoftLabels,
  { label, truth, targets, vocabSize }: LabelEntries,
): Description {
  const input = (topk: string, sampled: string) =>
    g.inputs.find(({ name }) => name === `teacher.${soft.kind === 'sampled' ? sampled : topk}`)!;
  const ids = input('topk_ids', 'sampled_ids');
  const width = ids.shape[1]!;
  const hasTail = label.shape[1] !== width;
  const [entries, tail] = hasTail ? g.split(label, 1, [width as number, 1]) : [label];
  // As they came: tempering may have moved what stands for nothing.
  const isPresent = emitIsPresent(g, input('topk_logprobs', 'sampled_logweights'));
  const trueEntries = pick(g, truth, ids);
  const zero = g.scalar(0);
  const ofPresent = (values: Value) => g.reduceSum(g.where(isPresent, values, zero), [1], true);
  const retained = ofPresent(g.exp(trueEntries));
  const best = bestOf(g, entries!);
  const described = {
    retained,
    confidence: g.exp(pick(g, entries!, best)),
    truth: g.exp(pick(g, trueEntries, best)),
  };
  const nothing = g.expand(zero, ['N']);
  if (!coversVocabulary(soft)) return { ...described, divergence: nothing, nll: nothing };
  const everything = g.exp(truth);
  const negativeEntropy = emitRowSum(g, g.mul(everything, truth));
  const crossOfEntries = ofPresent(g.mul(g.exp(trueEntries), entries!));
  const isTarget = g.and(g.equal(ids, targets), isPresent);
  const removed = g.scalar(REMOVED_SCORE);
  const hit = g.reduceMax(g.where(isTarget, entries!, removed), [1], true);
  if (tail === undefined) return { ...described, divergence: g.sub(negativeEntropy, crossOfEntries), nll: g.neg(hit) };
  const others = g.sub(g.scalar(vocabSize), ofPresent(g.expand(g.scalar(1), ids.shape)));
  const each = g.sub(g.max(tail, g.scalar(LEAST_TAIL_LOGPROB)), g.log(g.max(others, g.scalar(1))));
  // Summed over what is left rather than 1 - Σ, as the loss does it.
  const outside = g.scatterElements(everything, ids, g.expand(zero, ids.shape), { axis: 1 });
  const crossOfTail = g.mul(emitRowSum(g, outside), each);
  return {
    ...described,
    divergence: g.sub(negativeEntropy, g.add(crossOfEntries, crossOfTail)),
    nll: g.neg(g.where(g.less(g.scalar(REMOVED_SCORE / 2), hit), hit, each)),
  };
}
