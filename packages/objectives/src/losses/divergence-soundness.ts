import type { Divergence } from './divergence.ts';
import type { SoftLabels } from './loss-graph.ts';

/**
 * Why a divergence cannot be taken on labels, or undefined where it can. The forward KL reads the teacher's entries
 * only; every other needs both sides to be whole distributions.
 */
export function explainUnsoundDivergence({ kind }: Divergence, labels: SoftLabels): string | undefined {
  if (kind === 'forward-kl') return undefined;
  if (labels.kind === 'sampled')
    return 'draws say nothing of ids that were not drawn: only the forward KL has an unbiased gradient from them';
  if (labels.kind === 'topk' && labels.tail === 'renormalise')
    return (
      "the student's entries do not add up to 1 beside a renormalised teacher's: it would be least where the " +
      'student puts its mass outside the top k'
    );
  return undefined;
}
