/** Distillation losses as graph fragments, and the arrays of labels that they read. */
export { checkModelTokenizer, sharedVocabulary } from './compatibility.ts';
export { type Divergence, emitDivergence, type LogDistributions } from './divergence.ts';
export {
  collectLabels,
  countTargets,
  type FloatArray,
  type LabelArray,
  type LabelArrays,
  type LabelOptions,
  sliceLabel,
} from './label-arrays.ts';
export {
  ABSENT_LOGPROB,
  emitFullDistributions,
  emitTopKDistributions,
  type TailKind,
  type TopKInputs,
} from './label-distributions.ts';
export {
  emitSoftLoss,
  type HiddenMatch,
  lossGraph,
  type Objective,
  type Readout,
  type SoftLabels,
} from './loss-graph.ts';
export { emitCrossEntropy, emitHiddenLoss, type HiddenLoss } from './token-losses.ts';
