import type { GraphBuilder, Value } from '@stillhouse/onnx-graph';

/** How far the student's distribution Q is from the teacher's P. */
export type Divergence =
  | { readonly kind: 'forward-kl' }
  | { readonly kind: 'reverse-kl' }
  | { readonly kind: 'jensen-shannon'; readonly beta: number };

/** Log-probabilities of both sides over the same entries, [N, E] each, natural logarithms. */
export interface LogDistributions {
  readonly teacher: Value;
  readonly student: Value;
}

/** Σ a (log a - log b) over the entries: [N]. */
function emitKl(g: GraphBuilder, logA: Value, logB: Value): Value {
  return g.reduceSum(g.mul(g.exp(logA), g.sub(logA, logB)), [1]);
}

/** log(β a + (1-β) b) from logarithms, without leaving log space. */
function emitLogMixture(g: GraphBuilder, logA: Value, logB: Value, beta: number): Value {
  const side = (log: Value, share: number) => g.reshape(g.add(log, g.scalar(Math.log(share))), [...log.shape, 1]);
  return g.reduceLogSumExp(g.concat([side(logA, beta), side(logB, 1 - beta)], 2), [2]);
}

/**
 * The divergence at each position, [N], in nats and without the factor T²: KL(P‖Q), KL(Q‖P), or
 * β KL(P‖M) + (1-β) KL(Q‖M) with M = β P + (1-β) Q (Agarwal et al. 2024, arXiv 2306.13649, eq. 1).
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
  }
}
