import type { StepMetrics } from '@stillhouse/student-trainer';

/** Terms of the loss that take part, by their names in metrics.jsonl. */
export function lossTerms(metrics: StepMetrics): readonly (readonly [LossTerm, number])[] {
  return LOSS_TERMS.flatMap((term) => {
    const value = metrics[term] ?? 0;
    return value === 0 ? [] : [[term, value] as const];
  });
}

const LOSS_TERMS = ['kl', 'ce', 'hidden', 'attention'] as const;
type LossTerm = (typeof LOSS_TERMS)[number];
