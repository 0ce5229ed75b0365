/** float16 travels as its bit patterns in a Uint16Array, bool as 0 and 1 in a Uint8Array. */
export const TENSOR_ARRAYS = {
  float32: Float32Array,
  float64: Float64Array,
  int64: BigInt64Array,
  int32: Int32Array,
  int8: Int8Array,
  uint8: Uint8Array,
  uint16: Uint16Array,
  float16: Uint16Array,
  bool: Uint8Array,
} as const;

/** Element types that cross between JavaScript and a device, named as ONNX Runtime's JavaScript API names them. */
export type TensorDtype = keyof typeof TENSOR_ARRAYS;

/** The arrays that hold tensor data in JavaScript; {@link TENSOR_ARRAYS} says which dtype uses which. */
export type TensorData =
  | Float32Array
  | Float64Array
  | BigInt64Array
  | Int32Array
  | Int8Array
  | Uint8Array
  | Uint16Array;

/** Element types of tensors in a graph; bfloat16 exists inside of graphs only. */
export type Dtype = TensorDtype | 'bfloat16';

/** ONNX's number of an element type: `TensorProto.DataType` of onnx.proto. */
export const ONNX_TYPES: { readonly [D in Dtype]: number } = {
  float32: 1,
  uint8: 2,
  int8: 3,
  uint16: 4,
  int32: 6,
  int64: 7,
  bool: 9,
  float16: 10,
  float64: 11,
  bfloat16: 16,
};

/** Whether tensors on a device can have this element type. */
export const isTensorDtype = (dtype: string): dtype is TensorDtype => Object.hasOwn(TENSOR_ARRAYS, dtype);

/** Bytes of one element. */
export const elementBytes = (dtype: Dtype): number =>
  dtype === 'bfloat16' ? 2 : TENSOR_ARRAYS[dtype].BYTES_PER_ELEMENT;
