import { TENSOR_ARRAYS, type TensorData } from '@stillhouse/tensor-types';
import type { BoundRun, EnterNative, TensorMemory } from '../tensor-memory.ts';
import { createArrayCollection } from './array-collection.ts';
import { addressOf } from './foreign-functions.ts';
import { createHeldTensors, type HeldTensor, type HeldTensors, sizeOf } from './held-tensors.ts';
import type { NativeDevice } from './native-device.ts';
import type { NativeSession, NativeSessions } from './native-session.ts';

/**
 * Tensors in main memory or in that of a CUDA device. Programs read and write them where they lie, and views are
 * addresses inside of them. On a CUDA device everything is queued in one stream, so only a download waits for it.
 */
export function createNativeMemory(
  device: NativeDevice,
  sessions: NativeSessions,
  enterNative: EnterNative,
): TensorMemory<NativeSession> {
  const tensors = createHeldTensors(device, sessions);
  const arrays = createArrayCollection();
  const write = ({ address, count }: HeldTensor, data: TensorData) => {
    if (count > 0) device.write(address, data);
    arrays.leave(data.byteLength);
  };
  return {
    async upload(handle, dtype, shape, data) {
      await enterNative(async () => write(tensors.allocate(handle, { dtype, shape }, 'nothing'), data));
    },
    async allocate(handle, dtype, shape) {
      await enterNative(async () => void tensors.allocate(handle, { dtype, shape }, 'zeros'));
    },
    view: async (handle, of, offset, shape) => tensors.view(handle, of, offset, shape),
    async write(handle, data) {
      await enterNative(async () => write(tensors.get(handle), data));
    },
    fill: async (handle, value) => fill(device, tensors.get(handle), value),
    async copy(from, to) {
      const source = tensors.get(from);
      if (source.count > 0) device.copy(source.address, tensors.get(to).address, sizeOf(source));
    },
    async free(handles) {
      for (const handle of handles) tensors.end(handle);
    },
    async download(handle) {
      const { address, dtype, count } = tensors.get(handle);
      const data = new TENSOR_ARRAYS[dtype](count);
      if (count > 0) await enterNative(async () => device.read(address, data));
      return data;
    },
    run: (bound) => run(sessions, tensors, enterNative, bound),
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
      tensors.endAll();
      device.synchronize();
    },
  };
}

function fill(device: NativeDevice, { address, dtype, count }: HeldTensor, value: number): void {
  if (count === 0) return;
  const one = new TENSOR_ARRAYS[dtype](1);
  if (dtype === 'int64') (one as BigInt64Array)[0] = BigInt(value);
  else (one as Float32Array)[0] = value;
  device.fill(address, new Uint8Array(one.buffer), count);
}

async function run(
  sessions: NativeSessions,
  tensors: HeldTensors,
  enterNative: EnterNative,
  { session, inputs, outputs, shapes }: BoundRun<NativeSession>,
): Promise<void> {
  const given = shapes.map(([name, sizes]) => {
    const data = BigInt64Array.from(sizes, BigInt);
    const layout = { dtype: 'int64', shape: [data.length], sizeBytes: data.byteLength } as const;
    return { name, data, value: sessions.wrap(addressOf(data), layout, 'host') };
  });
  const bind = (ports: readonly (readonly [string, number])[]) =>
    ports.map(([name, handle]) => [name, tensors.get(handle).value] as const);
  const values = given.map(({ name, value }) => [name, value] as const);
  try {
    await enterNative(async () => sessions.run(session, [...bind(inputs), ...values], bind(outputs)));
  } finally {
    for (const { value } of given) sessions.unwrap(value);
  }
}
