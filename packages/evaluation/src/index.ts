/** Evaluation: held-out KL, exact match, the quality of labels. */
export {
  checkEvaluation,
  type EvaluationEvents,
  type EvaluationResult,
  type EvaluationRun,
  type ExactMatchResult,
  evaluateModel,
  type KdResult,
  type SharedCaches,
} from './evaluate.ts';
export { EVALUATION_SETTINGS, type EvaluationSettings } from './evaluation-settings.ts';
export type { ExactMatchFigures, ExactMatchRecord } from './exact-match/exact-match.ts';
export { type HeldOutOptions, type HeldOutRows, openHeldOut } from './kd/held-out.ts';
export { evaluateKd, type KdFigures, type KdOptions, type KdRecord } from './kd/kd-evaluation.ts';
export { type KdLabels, resolveKdLabels } from './kd/kd-labels.ts';
export { type KdRow, selectKdRows } from './kd/kd-rows.ts';
export { listLabelModes, type ModeSource } from './quality/cache-modes.ts';
export { type CacheQuality, measureCacheQuality, type QualityEvents } from './quality/cache-quality.ts';
export type { LabelMode, QualitySample } from './quality/label-mode.ts';
export {
  type LabelQuality,
  type ModeQuality,
  measureLabelQuality,
  type QualityOptions,
} from './quality/label-quality.ts';
export type { LabelFigures } from './quality/quality-figures.ts';
export { QUALITY_SETTINGS, type QualitySettings } from './quality/quality-settings.ts';
