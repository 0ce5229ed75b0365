/** What a tensor is made of: element types, shapes, and dimensions that only a run knows. Loads nothing. */
export {
  broadcastShapes,
  type Dim,
  multiplyDims,
  resolveDim,
  type Shape,
  scaleOf,
  shapesEqual,
  symbolsOf,
} from './dims.ts';
export {
  type Dtype,
  elementBytes,
  isTensorDtype,
  ONNX_TYPES,
  TENSOR_ARRAYS,
  type TensorData,
  type TensorDtype,
} from './element-types.ts';
export { isShapeInput, shapeInputDims, shapeInputName } from './shape-input.ts';
export { countElements, formatShape, formatTensorType } from './shapes.ts';
