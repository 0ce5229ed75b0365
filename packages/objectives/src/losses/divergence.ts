import type { GraphBuilder, Value } from '@stillhouse/onnx-graph';

/** How far the student's distribution Q is from the teacher's P. */
export type Divergence =
  | { readonly kind: 'forward-kl' }
  | { readonly kind: 'reverse-kl' }
  /** 0 < beta < 1. */
  | { readonly kind: 'jensen-shannon'; readonly beta: number }
  /** 0 <= skew < 1. */
  | { readonly kind: 'skew-kl'; readonly skew: number }
  | { readonly kind: 'total-variation' };

/** Log-probabilities of both sides over the same entries, [N, E] each, natural logarithms. */
export interface LogDistributions {
  readonly teacher: Value;
  readonly student: Value;
}

/** Σ a (log a - log b) over the entries: [N]. */
function emitKl(g: GraphBuilder, logA: Value, logB: Value): Value {
  return g.reduceSum(g.mul(g.exp(logA), g.sub(logA, logB)), [1]);
}

/**
 * KL(P‖Q) at each position, [N], of a teacher's log-probabilities over the whole vocabulary and a student's logits,
 * [N, V] each, Q at temperature T. The same as {@link emitDivergence} of both distributions, with the gradient in
 * closed form, (Σp · q - p) / T, which passes over [N, V] half as often as those of the operators do.
 */
export function emitForwardKl(g: GraphBuilder, teacher: Value, studentLogits: Value, temperature: Value): Value {
  const [kl] = g.withGradient([studentLogits], () => {
    const inverse = g.reciprocal(temperature);
    const student = g.logSoftmax(g.mul(studentLogits, inverse), 1);
    const p = g.exp(teacher);
    return {
      outputs: [g.reduceSum(g.mul(p, g.sub(teacher, student)), [1])],
      gradient: ([dy]) => {
        const each = g.mul(g.reshape(dy!, [dy!.shape[0]!, 1]), inverse);
        const mass = g.reduceSum(p, [1], true);
        return [g.sub(g.mul(g.exp(student), g.mul(each, mass)), g.mul(p, each))];
      },
    };
  });
  return kl!;
}

/**
 * log(β a + (1-β) b) from logarithms, without leaving log space: the greater side plus the logarithm of one and
 * the ratio, so that nothing overflows and no third axis is needed.
 */
function emitLogMixture(g: GraphBuilder, logA: Value, logB: Value, beta: number): Value {
  const [a, b] = [g.add(logA, g.scalar(Math.log(beta))), g.add(logB, g.scalar(Math.log1p(-beta)))];
  const isLess = g.less(a, b);
  const [greater, lesser] = [g.where(isLess, b, a), g.where(isLess, a, b)];
  return g.add(greater, g.log(g.add(g.scalar(1), g.exp(g.sub(lesser, greater)))));
}

/**
 * The divergence at each position, [N], in nats (total variation has no unit) and without the factor T²:
 * - `forward-kl`: KL(P‖Q); `reverse-kl`: KL(Q‖P);
 * - `jensen-shannon`: β KL(P‖M) + (1-β) KL(Q‖M) with M = β P + (1-β) Q (Agarwal et al. 2024, arXiv 2306.13649, eq. 1);
 *   at most the entropy of (β, 1-β); divided by β it tends to KL(P‖Q) as β goes to 0, by 1-β to KL(Q‖P) as β goes to 1;
 * - `skew-kl`: KL(P‖λ P + (1-λ) Q) with λ = skew (Ko et al. 2024, arXiv 2402.03898, eq. 3); at most -log λ; λ = 0 is
 *   `forward-kl`;
 * - `total-variation`: ½ Σ |P - Q| (Wen et al. 2023, arXiv 2307.15190), from 0 to 1.
 *
 * All are f-divergences: 0 where P = Q, never below, and never greater on lumped entries (top-k with its tail) than on
 * the whole vocabulary.
 */
export function emitDivergence(g: GraphBuilder, divergence: Divergence, { teacher, student }: LogDistributions): Value {
  switch (divergence.kind) {
    case 'forward-kl':
      return emitKl(g, teacher, student);
    case 'reverse-kl':
      return emitKl(g, student, teacher);
    case 'jensen-shannon': {
      const { beta } = divergence;
      const mixture = emitLogMixture(g, teacher, student, beta);
      return g.add(g.scale(emitKl(g, teacher, mixture), beta), g.scale(emitKl(g, student, mixture), 1 - beta));
    }
    case 'skew-kl': {
      const { skew } = divergence;
      return emitKl(g, teacher, skew === 0 ? student : emitLogMixture(g, teacher, student, skew));
    }
    case 'total-variation': {
      const difference = g.sub(g.exp(student), g.exp(teacher));
      const size = g.where(g.less(difference, g.scalar(0)), g.neg(difference), difference);
      return g.scale(g.reduceSum(size, [1]), 0.5);
    }
  }
}
