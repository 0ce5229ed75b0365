import { countElements, TENSOR_ARRAYS, type TensorData, type TensorDtype } from '../tensor.ts';
import type { EnterNative, TensorMemory } from '../tensor-memory.ts';
import { createArrayCollection } from './array-collection.ts';
import { type Address, addressOf } from './foreign-functions.ts';
import type { NativeDevice } from './native-device.ts';
import type { NativeSession, NativeSessions } from './native-session.ts';

interface HeldTensor {
  readonly dtype: TensorDtype;
  readonly count: number;
  readonly address: Address;
  /** The tensor as ONNX Runtime has it (OrtValue). */
  readonly value: Address;
  /** Whether the memory ends with the tensor; that of a view does not. */
  readonly isOwner: boolean;
}

/** Addresses from the device's allocator are multiples of this; a tensor without elements has one too. */
const LEAST_BYTES = 256;

/**
 * Tensors in main memory or in that of a CUDA device. Programs read and write them where they lie, and views are addresses
 * inside of them. On a CUDA device everything is queued in one stream, so only a download waits for it.
 */
export function createNativeMemory(
  device: NativeDevice,
  sessions: NativeSessions,
  enterNative: EnterNative,
): TensorMemory<NativeSession> {
  const tensors = new Map<number, HeldTensor>();
  const arrays = createArrayCollection();

  function get(handle: number): HeldTensor {
    const held = tensors.get(handle);
    if (held === undefined) throw new Error(`no tensor has the handle ${handle}`);
    return held;
  }

  const sizeOf = ({ dtype, count }: Pick<HeldTensor, 'dtype' | 'count'>) =>
    count * TENSOR_ARRAYS[dtype].BYTES_PER_ELEMENT;

  function hold(
    handle: number,
    dtype: TensorDtype,
    shape: readonly number[],
    address: Address,
    isOwner: boolean,
  ): void {
    const count = countElements(shape);
    const value = sessions.wrap(address, sizeOf({ dtype, count }), dtype, shape, 'device');
    tensors.set(handle, { dtype, count, address, value, isOwner });
  }

  function allocate(
    handle: number,
    dtype: TensorDtype,
    shape: readonly number[],
    fill: 'nothing' | 'zeros',
  ): HeldTensor {
    const sizeBytes = Math.max(LEAST_BYTES, sizeOf({ dtype, count: countElements(shape) }));
    hold(handle, dtype, shape, fill === 'zeros' ? device.allocateZeros(sizeBytes) : device.allocate(sizeBytes), true);
    return get(handle);
  }

  function write({ address, count }: HeldTensor, data: TensorData): void {
    if (count > 0) device.write(address, data);
    arrays.leave(data.byteLength);
  }

  function fill({ address, dtype, count }: HeldTensor, value: number): void {
    if (count === 0) return;
    const one = new TENSOR_ARRAYS[dtype](1);
    if (dtype === 'int64') (one as BigInt64Array)[0] = BigInt(value);
    else (one as Float32Array)[0] = value;
    device.fill(address, new Uint8Array(one.buffer), count);
  }

  return {
    async upload(handle, dtype, shape, data) {
      await enterNative(async () => write(allocate(handle, dtype, shape, 'nothing'), data));
    },
    async allocate(handle, dtype, shape) {
      await enterNative(async () => void allocate(handle, dtype, shape, 'zeros'));
    },
    async view(handle, of, offset, shape) {
      const { dtype, address } = get(of);
      hold(handle, dtype, shape, address + BigInt(sizeOf({ dtype, count: offset })), false);
    },
    async write(handle, data) {
      await enterNative(async () => write(get(handle), data));
    },
    async fill(handle, value) {
      fill(get(handle), value);
    },
    async copy(from, to) {
      const source = get(from);
      if (source.count > 0) device.copy(source.address, get(to).address, sizeOf(source));
    },
    async free(handles) {
      for (const handle of handles) {
        const held = tensors.get(handle);
        if (held === undefined) continue;
        tensors.delete(handle);
        sessions.unwrap(held.value);
        if (held.isOwner) device.free(held.address);
      }
    },
    async download(handle) {
      const { address, dtype, count } = get(handle);
      const data = new TENSOR_ARRAYS[dtype](count);
      if (count > 0) await enterNative(async () => device.read(address, data));
      return data;
    },
    async run({ session, inputs, outputs, shapes }) {
      const shapeValues = shapes.map(([name, sizes]) => {
        const data = BigInt64Array.from(sizes, BigInt);
        return { name, data, value: sessions.wrap(addressOf(data), data.byteLength, 'int64', [data.length], 'host') };
      });
      const bind = (ports: readonly (readonly [string, number])[]) =>
        ports.map(([name, handle]) => [name, get(handle).value] as const);
      const given = shapeValues.map(({ name, value }) => [name, value] as const);
      try {
        await enterNative(async () => sessions.run(session, [...bind(inputs), ...given], bind(outputs)));
      } finally {
        for (const { value } of shapeValues) sessions.unwrap(value);
      }
    },
    async release(session) {
      await enterNative(async () => {
        device.synchronize();
        sessions.release(session);
      });
    },
    collect() {
      arrays.collect();
      device.trim();
    },
    measureDevice: () => device.measureMemory(),
    async close() {
      device.synchronize();
      for (const { value, address, isOwner } of tensors.values()) {
        sessions.unwrap(value);
        if (isOwner) device.free(address);
      }
      tensors.clear();
      device.synchronize();
    },
  };
}
