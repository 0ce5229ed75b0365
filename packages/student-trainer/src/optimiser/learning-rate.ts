export interface ScheduleSettings {
  readonly lr: number;
  /** Steps of linear warm-up. */
  readonly warmupSteps: number;
  /** The rate at the last step as a share of `lr`. */
  readonly finalLrRatio: number;
  readonly steps: number;
}

/**
 * Linear warm-up, then half a cosine down to `finalLrRatio · lr` at the last step (arXiv 1608.03983, eq. 5). `step`
 * counts from 1.
 */
export function learningRateAt(step: number, { lr, warmupSteps, finalLrRatio, steps }: ScheduleSettings): number {
  if (step <= warmupSteps) return (lr * step) / warmupSteps;
  const progress = steps <= warmupSteps + 1 ? 0 : (step - warmupSteps - 1) / (steps - warmupSteps - 1);
  return lr * (finalLrRatio + (1 - finalLrRatio) * 0.5 * (1 + Math.cos(Math.PI * Math.min(1, progress))));
}
