/** Build, type-check, differentiate, verify, print and encode ONNX graphs. Knows no language model. */
export { GraphBuilder, type GraphHints } from './builder.ts';
export { type DifferentiateOptions, differentiate } from './differentiate.ts';
export { elementCount, formatShape, multiplyDims, resolveDim, shapesEqual, symbolsOf } from './dims.ts';
export { encodeModel } from './encode.ts';
export type { EncodingTarget, ProductPrecision } from './encoding-target.ts';
export type { GradientPart, PartGradient } from './gradient-part.ts';
export {
  GRADIENT_RULES,
  type GradientContext,
  type GradientRule,
  type GradientRules,
  type NoGradient,
} from './gradients.ts';
export { OPERATORS } from './operators.ts';
export { printGraph } from './print.ts';
export { findCut, racesOnThreads } from './reachable.ts';
export type {
  AttributeValue,
  ConstantData,
  Contribution,
  Dim,
  Dtype,
  FloatDtype,
  Node,
  OperatorAttributes,
  OperatorName,
  Shape,
  TensorType,
  Value,
} from './types.ts';
export { findGraphProblems, verifyGraph } from './verify.ts';
export { WEBGPU_OPERATORS } from './webgpu.ts';
export { measureWorkingMemory } from './working-memory.ts';
