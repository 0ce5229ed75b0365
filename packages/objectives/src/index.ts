/** Distillation losses as graph fragments, and the arrays of labels that they read. */
export { describeOpenLabels, type RefineMode, resolveRefinement } from './labels/cache-labels.ts';
export { checkModelTokenizer, requireRowFits, sharedVocabulary } from './labels/compatibility.ts';
export {
  collectLabels,
  collectRefinement,
  countTargets,
  type LabelArray,
  type LabelArrays,
  type LabelOptions,
  sliceLabel,
  type TaskWeights,
  weighRow,
} from './labels/label-arrays.ts';
export {
  ABSENT_LOGPROB,
  emitFullDistributions,
  emitIsPresent,
  emitSampledDistributions,
  emitTopKDistributions,
  type SampledInputs,
  type TailKind,
  type TopKInputs,
} from './labels/label-distributions.ts';
export type { FloatArray } from './labels/label-gathering.ts';
export { joinLabels, type LabelPart } from './labels/label-joining.ts';
export { emitRefinedTeacher, type RefinementInputs, type RefinementNormaliser } from './labels/refined-distribution.ts';
export { describeFullLabels, uploadTeacherHead } from './labels/teacher-head.ts';
export { type Divergence, emitDivergence, emitForwardKl, type LogDistributions } from './losses/divergence.ts';
export { explainUnsoundDivergence } from './losses/divergence-soundness.ts';
export {
  emitHiddenLoss,
  type FeatureMatch,
  type FeatureNormalisation,
  featureLossGraph,
  featureName,
  type HiddenLoss,
} from './losses/feature-match.ts';
export {
  emitSoftDistributions,
  emitSoftLoss,
  LOST_TAIL_LOGPROB,
  type LossGradients,
  lossGraph,
  type Objective,
  type Readout,
  type Refinement,
  type SoftLabels,
} from './losses/loss-graph.ts';
export { emitCrossEntropy } from './losses/token-losses.ts';
export { countSelected, emitEntropy, entropyGraph, selectionGraph } from './losses/token-selection.ts';
export { emitLogSumExp, emitRowSum, REMOVED_SCORE } from './losses/vocabulary-sums.ts';
