/** Distillation losses as graph fragments, and the arrays of labels that they read. */
export { describeOpenLabels, type RefineMode, resolveRefinement } from './cache-labels.ts';
export { checkModelTokenizer, requireRowFits, sharedVocabulary } from './compatibility.ts';
export { type Divergence, emitDivergence, emitForwardKl, type LogDistributions } from './divergence.ts';
export { explainUnsoundDivergence } from './divergence-soundness.ts';
export {
  emitHiddenLoss,
  type FeatureMatch,
  type FeatureNormalisation,
  featureLossGraph,
  featureName,
  type HiddenLoss,
} from './feature-match.ts';
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
} from './label-arrays.ts';
export {
  ABSENT_LOGPROB,
  emitFullDistributions,
  emitIsPresent,
  emitSampledDistributions,
  emitTopKDistributions,
  type SampledInputs,
  type TailKind,
  type TopKInputs,
} from './label-distributions.ts';
export type { FloatArray } from './label-gathering.ts';
export { joinLabels, type LabelPart } from './label-joining.ts';
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
} from './loss-graph.ts';
export { emitRefinedTeacher, type RefinementInputs, type RefinementNormaliser } from './refined-distribution.ts';
export { describeFullLabels, uploadTeacherHead } from './teacher-head.ts';
export { emitCrossEntropy } from './token-losses.ts';
export { countSelected, emitEntropy, entropyGraph, selectionGraph } from './token-selection.ts';
export { emitLogSumExp, emitRowSum, REMOVED_SCORE } from './vocabulary-sums.ts';
