import { StillhouseError } from '@stillhouse/errors';
import type { Dtype } from '@stillhouse/onnx-graph';

/** Element types that cross between JavaScript and the device. */
export type TensorDtype = Exclude<Dtype, 'bfloat16'>;

/** The arrays that hold tensor data in JavaScript; {@link TENSOR_ARRAYS} says which dtype uses which. */
export type TensorData =
  | Float32Array
  | Float64Array
  | BigInt64Array
  | Int32Array
  | Int8Array
  | Uint8Array
  | Uint16Array;

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
} as const satisfies Record<TensorDtype, unknown>;

/**
 * A named region of memory on an engine's device. The data stays there; only {@link Engine.download} brings it back.
 * Several tensors may alias one buffer (see {@link Engine.view}).
 */
export interface DeviceTensor {
  /** Unique in the process, so that a tensor of another engine is never mistaken for one's own. */
  readonly handle: number;
  readonly dtype: TensorDtype;
  readonly shape: readonly number[];
  readonly sizeBytes: number;
}

export function isTensorDtype(dtype: string): dtype is TensorDtype {
  return Object.hasOwn(TENSOR_ARRAYS, dtype);
}

export function countElements(shape: readonly number[]): number {
  return shape.reduce((product, dim) => product * dim, 1);
}

export function formatShape(shape: readonly (number | string)[]): string {
  return `[${shape.map((dim) => (dim === '' ? '?' : dim)).join(', ')}]`;
}

/**
 * Byte size of a tensor.
 * @throws TENSOR_DTYPE_UNSUPPORTED, TENSOR_SHAPE_INVALID
 */
export function measureTensor(where: string, dtype: TensorDtype, shape: readonly number[]): number {
  if (!isTensorDtype(dtype)) {
    throw new StillhouseError({
      code: 'TENSOR_DTYPE_UNSUPPORTED',
      where,
      problem: 'no such element type',
      expected: Object.keys(TENSOR_ARRAYS).join(', '),
      got: String(dtype),
    });
  }
  if (!shape.every((dim) => Number.isSafeInteger(dim) && dim >= 0)) {
    throw new StillhouseError({
      code: 'TENSOR_SHAPE_INVALID',
      where,
      problem: 'a dimension is not a whole number from 0 up',
      got: formatShape(shape),
    });
  }
  return countElements(shape) * TENSOR_ARRAYS[dtype].BYTES_PER_ELEMENT;
}

/**
 * Refuses data whose array type or length is not that of the tensor.
 * @throws TENSOR_DATA_MISMATCH
 */
export function checkTensorData(where: string, data: TensorData, dtype: TensorDtype, shape: readonly number[]): void {
  const expected = TENSOR_ARRAYS[dtype].name;
  // By name: a Buffer is a Uint8Array, and arrays of another realm are arrays too.
  const got = Object.prototype.toString.call(data).slice('[object '.length, -1);
  if (got !== expected || data.length !== countElements(shape)) {
    throw new StillhouseError({
      code: 'TENSOR_DATA_MISMATCH',
      where,
      problem: `the data does not fit a ${dtype} tensor of shape ${formatShape(shape)}`,
      expected: `${expected} of ${countElements(shape)} elements`,
      got: `${got} of ${data.length}`,
    });
  }
}
