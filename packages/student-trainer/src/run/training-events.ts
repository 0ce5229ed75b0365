import type { CacheUse } from '../data/training-sources.ts';
import type { HeldOutEvaluator, HeldOutMetrics } from '../watch/held-out.ts';
import type { StepMetrics } from '../watch/metrics.ts';

/** A stage in figures. */
export interface StageSummary {
  readonly name: string;
  readonly steps: number;
  readonly rows: number;
  readonly labels: string;
}

export interface TrainingStart {
  readonly steps: number;
  /** Done by the run that this one continues. */
  readonly stepsDone: number;
  readonly rows: number;
  readonly tokensPerEpoch: number;
  readonly labels: string;
  readonly device: string;
  /** Of several caches the digests of all, separated by commas. */
  readonly cacheDigest: string;
  readonly caches: readonly CacheUse[];
  /** All stages, where the run has any; rows and labels above are then those of the stage that it begins with. */
  readonly stages?: readonly StageSummary[];
}

export interface TrainingEvents {
  readonly onPlan?: (plan: TrainingStart) => void;
  readonly onStep?: (metrics: StepMetrics, steps: number) => void;
  /** Told after each evaluation on held-out rows. */
  readonly onHeldOut?: (metrics: HeldOutMetrics) => void;
  /** How to evaluate; `evalEvery` needs it. */
  readonly evaluate?: HeldOutEvaluator;
  /** Once aborted, the step under way is finished, a checkpoint saved, and the result is not `isFinished`. */
  readonly stopSignal?: AbortSignal;
}
