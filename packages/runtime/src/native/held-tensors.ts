import { countElements, elementBytes, type TensorDtype } from '@stillhouse/tensor-types';
import type { Address } from './foreign-functions.ts';
import type { NativeDevice } from './native-device.ts';
import type { NativeSessions } from './native-session.ts';

export interface HeldTensor {
  readonly dtype: TensorDtype;
  readonly count: number;
  readonly address: Address;
  /** The tensor as ONNX Runtime has it (OrtValue). */
  readonly value: Address;
  /** Whether the memory ends with the tensor; that of a view does not. */
  readonly isOwner: boolean;
}

/** The tensors of a device by handle, and the memory that they own. */
export interface HeldTensors {
  get(handle: number): HeldTensor;
  allocate(handle: number, type: TensorKind, fill: 'nothing' | 'zeros'): HeldTensor;
  view(handle: number, of: number, offset: number, shape: readonly number[]): void;
  /** Ends a tensor, if there is one. */
  end(handle: number): void;
  endAll(): void;
}

interface TensorKind {
  readonly dtype: TensorDtype;
  readonly shape: readonly number[];
}

/** Addresses from the device's allocator are multiples of this; a tensor without elements has one too. */
const LEAST_BYTES = 256;

export const sizeOf = ({ dtype, count }: Pick<HeldTensor, 'dtype' | 'count'>) => count * elementBytes(dtype);

export function createHeldTensors(device: NativeDevice, sessions: NativeSessions): HeldTensors {
  const tensors = new Map<number, HeldTensor>();

  function get(handle: number): HeldTensor {
    const held = tensors.get(handle);
    if (held === undefined) throw new Error(`no tensor has the handle ${handle}`);
    return held;
  }

  function hold(handle: number, { dtype, shape }: TensorKind, place: Pick<HeldTensor, 'address' | 'isOwner'>): void {
    const count = countElements(shape);
    const value = sessions.wrap(place.address, { dtype, shape, sizeBytes: sizeOf({ dtype, count }) }, 'device');
    tensors.set(handle, { dtype, count, value, ...place });
  }

  function end(handle: number): void {
    const held = tensors.get(handle);
    if (held === undefined) return;
    tensors.delete(handle);
    sessions.unwrap(held.value);
    if (held.isOwner) device.free(held.address);
  }

  return {
    get,
    end,
    allocate(handle, type, fill) {
      const sizeBytes = Math.max(LEAST_BYTES, sizeOf({ dtype: type.dtype, count: countElements(type.shape) }));
      const address = fill === 'zeros' ? device.allocateZeros(sizeBytes) : device.allocate(sizeBytes);
      hold(handle, type, { address, isOwner: true });
      return get(handle);
    },
    view(handle, of, offset, shape) {
      const { dtype, address } = get(of);
      const inside = address + BigInt(sizeOf({ dtype, count: offset }));
      hold(handle, { dtype, shape }, { address: inside, isOwner: false });
    },
    endAll() {
      for (const handle of [...tensors.keys()]) end(handle);
    },
  };
}
