/** Build, type-check, differentiate, verify, print and encode ONNX graphs. Knows no language model. */

export { encodeModel } from './encode/encode.ts';
export type { EncodingTarget, ProductPrecision } from './encode/encoding-target.ts';
export { WEBGPU_OPERATORS } from './encode/webgpu-operators.ts';
export { type DifferentiateOptions, differentiate } from './gradients/differentiate.ts';
export type { GradientPart, PartGradient } from './gradients/gradient-part.ts';
export {
  GRADIENT_RULES,
  type GradientContext,
  type GradientRule,
  type GradientRules,
  type NoGradient,
} from './gradients/rules.ts';
export { GraphBuilder, type GraphHints } from './graph/builder.ts';
export { printGraph } from './graph/print.ts';
export { findCut, racesOnThreads } from './graph/reachable.ts';
export type {
  AttributeValue,
  ConstantData,
  Contribution,
  FloatDtype,
  Node,
  OperatorAttributes,
  OperatorName,
  TensorType,
  Value,
} from './graph/types.ts';
export { findGraphProblems, verifyGraph } from './graph/verify.ts';
export { measureWorkingMemory } from './memory/working-memory.ts';
