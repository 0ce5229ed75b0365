import type { TensorDtype } from '../tensor.ts';

/** ONNX's element types (TensorProto.DataType) that tensors of ours have. */
export const ELEMENT_TYPES: { readonly [Dtype in TensorDtype]: number } = {
  float32: 1,
  uint8: 2,
  int8: 3,
  uint16: 4,
  int32: 6,
  int64: 7,
  bool: 9,
  float16: 10,
  float64: 11,
};

export const DTYPES = new Map(Object.entries(ELEMENT_TYPES).map(([dtype, type]) => [type, dtype]));
