import type { QualityValues } from './quality-graphs.ts';

/** Equal bins of [0, 1] that calibration is averaged over, as in Guo et al. 2017, arXiv 1706.04599. */
export const CALIBRATION_BINS = 15;

/** How labels compare with the teacher's true distribution at one temperature, over n positions. Nats; no factor T². */
export interface LabelFigures {
  /** Mean of what the trainer would report as KL, and of the true KL(teacher‖student). */
  readonly loss: number;
  readonly exactLoss: number;
  /** Mean true probability of the ids that the labels name one by one; 1 for full labels. */
  readonly retainedMass: number;
  /**
   * Mean KL(teacher‖labels), labels without a shape for their tail completed by equal probabilities. Null where ids
   * have no probability at all (renormalised and sampled labels): it is infinite.
   */
  readonly divergence: number | null;
  /** Mean cross-entropy of the labels, completed likewise, with the next tokens: at T = 1 only, else null. */
  readonly ce: number | null;
  /**
   * g the exact gradient of a position's loss by the student's logits, d the difference of that from the labels.
   * Pooled: √(Σ|d|² / Σ|g|²) and the cosine of all positions as one vector.
   */
  readonly gradientError: number;
  readonly gradientCosine: number;
  /** The means over positions of |d| / |g| and of their cosines; where g vanishes a position is left out. */
  readonly meanGradientError: number;
  readonly meanGradientCosine: number;
  /**
   * Expected calibration error of the labels against the truth: at each position take the id that the labels think most
   * probable, its probability by the labels (confidence) and by the teacher; over 15 equal bins of the confidence,
   * Σ_bins share of positions · |mean confidence - mean true probability|.
   */
  readonly calibrationError: number;
}

/** Figures of all positions from what the graphs gave for each. */
export function summariseQuality(
  values: QualityValues,
  { temperature, coversVocabulary }: { readonly temperature: number; readonly coversVocabulary: boolean },
): LabelFigures {
  const { exactNorm, labelNorm, difference } = values;
  const count = exactNorm.length;
  const total = (column: Float64Array) => column.reduce((sum, one) => sum + one, 0);
  const mean = (column: Float64Array) => total(column) / count;
  const counted = [...exactNorm.keys()].filter((n) => exactNorm[n]! > 0);
  const meanOf = (value: (n: number) => number) => counted.reduce((sum, n) => sum + value(n), 0) / counted.length;
  const cosine = (exact: number, label: number, apart: number) =>
    exact > 0 && label > 0 ? (exact + label - apart) / (2 * Math.sqrt(exact * label)) : 0;
  return {
    loss: mean(values.loss),
    exactLoss: mean(values.exactLoss),
    retainedMass: mean(values.retained),
    divergence: coversVocabulary ? mean(values.divergence) : null,
    ce: coversVocabulary && temperature === 1 ? mean(values.nll) : null,
    gradientError: Math.sqrt(total(difference) / total(exactNorm)),
    gradientCosine: cosine(total(exactNorm), total(labelNorm), total(difference)),
    meanGradientError: meanOf((n) => Math.sqrt(difference[n]! / exactNorm[n]!)),
    meanGradientCosine: meanOf((n) => cosine(exactNorm[n]!, labelNorm[n]!, difference[n]!)),
    calibrationError: calibrationError(values.confidence, values.truth),
  };
}

function calibrationError(confidence: Float64Array, truth: Float64Array): number {
  const gaps = new Float64Array(CALIBRATION_BINS);
  confidence.forEach((sure, n) => {
    const bin = Math.min(CALIBRATION_BINS - 1, Math.floor(sure * CALIBRATION_BINS));
    gaps[bin]! += sure - truth[n]!;
  });
  return gaps.reduce((sum, gap) => sum + Math.abs(gap), 0) / confidence.length;
}
