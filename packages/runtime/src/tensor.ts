import { StillhouseError } from '@stillhouse/errors';
import {
  countElements,
  elementBytes,
  formatShape,
  isTensorDtype,
  TENSOR_ARRAYS,
  type TensorData,
  type TensorDtype,
} from '@stillhouse/tensor-types';

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
  return countElements(shape) * elementBytes(dtype);
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
