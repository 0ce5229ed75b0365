import { isTensorDtype, ONNX_TYPES } from '@stillhouse/tensor-types';
import type { Port } from '../protocol.ts';
import { type Address, addressRoom, NO_ADDRESS, readText } from './foreign-functions.ts';
import type { OnnxRuntimeLibrary } from './onnxruntime-library.ts';

/** What tensors of ours can have, by ONNX's number. */
const DTYPES = new Map(
  Object.entries(ONNX_TYPES)
    .filter(([dtype]) => isTensorDtype(dtype))
    .map(([dtype, type]) => [type, dtype]),
);

/** The inputs or outputs of a session. @param allocator what their names are freed with */
export function describePorts(
  ort: OnnxRuntimeLibrary,
  allocator: Address,
  session: Address,
  role: 'Input' | 'Output',
): readonly Port[] {
  const count = new BigUint64Array(1);
  ort.call(`sessionGet${role}Count`, session, count);
  return Array.from({ length: Number(count[0]) }, (_, i) => {
    const name = ort.make(`sessionGet${role}Name`, session, i, allocator);
    const type = ort.make(`sessionGet${role}TypeInfo`, session, i);
    try {
      return { name: readText(name), ...describeType(ort, ort.make('castTypeInfoToTensorInfo', type)) };
    } finally {
      ort.release('typeInfo', type);
      ort.call('allocatorFree', allocator, name);
    }
  });
}

/** `info` is none for what is no tensor. */
function describeType(ort: OnnxRuntimeLibrary, info: Address): Omit<Port, 'name'> {
  if (info === NO_ADDRESS) return { dtype: 'not a tensor', shape: [] };
  const type = new Int32Array(1);
  ort.call('getTensorElementType', info, type);
  const rank = new BigUint64Array(1);
  ort.call('getDimensionsCount', info, rank);
  const [sizes, symbols] = [new BigInt64Array(Number(rank[0])), addressRoom(Number(rank[0]))];
  ort.call('getDimensions', info, sizes, sizes.length);
  ort.call('getSymbolicDimensions', info, symbols, symbols.length);
  return {
    dtype: DTYPES.get(type[0]!) ?? `ONNX's type ${type[0]}`,
    shape: Array.from(sizes, (size, axis) => (size >= 0n ? Number(size) : readText(symbols[axis]!))),
  };
}
