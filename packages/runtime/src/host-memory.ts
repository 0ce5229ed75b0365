import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { type InferenceSession, Tensor } from 'onnxruntime-node';
import { countElements, TENSOR_ARRAYS, type TensorData, type TensorDtype } from './tensor.ts';
import type { EnterNative, TensorMemory } from './tensor-memory.ts';
import { runUncopied } from './uncopied-outputs.ts';

interface HeldTensor {
  readonly dtype: TensorDtype;
  readonly data: TensorData;
  readonly tensor: Tensor;
}

/** V8 does not hurry to collect a few large arrays, so memory is taken back once this much has been freed. */
const COLLECT_AFTER_BYTES = 256 * 2 ** 20;

/**
 * Tensors in main memory, as ordinary ArrayBuffers: the binding refuses SharedArrayBuffers. Views share the buffer, and
 * outputs are written where the tensor lies.
 */
export function createHostMemory(enterNative: EnterNative): TensorMemory<InferenceSession> {
  const tensors = new Map<number, HeldTensor>();
  let freedBytes = 0;
  setFlagsFromString('--expose-gc');
  const collectGarbage = runInNewContext('gc') as (options?: { type: 'minor' }) => void;

  function hold(handle: number, dtype: TensorDtype, shape: readonly number[], data: TensorData): void {
    const tensor = new Tensor(dtype, data as Float32Array, [...shape]) as Tensor;
    tensors.set(handle, { dtype, data, tensor });
  }

  function get(handle: number): HeldTensor {
    const held = tensors.get(handle);
    if (held === undefined) throw new Error(`no tensor has the handle ${handle}`);
    return held;
  }

  function countFreed(sizeBytes: number): void {
    freedBytes += sizeBytes;
    if (freedBytes >= COLLECT_AFTER_BYTES) collect();
  }

  function collect(): void {
    if (freedBytes === 0) return;
    collectGarbage();
    // V8 frees array memory in the background after a collection; the next collection waits for that.
    collectGarbage({ type: 'minor' });
    freedBytes = 0;
  }

  function allocateArray(dtype: TensorDtype, shape: readonly number[]): TensorData {
    const create = () => new TENSOR_ARRAYS[dtype](countElements(shape));
    try {
      return create();
    } catch {
      collect();
      return create();
    }
  }

  return {
    async upload(handle, dtype, shape, data) {
      hold(handle, dtype, shape, data);
    },
    async allocate(handle, dtype, shape) {
      hold(handle, dtype, shape, allocateArray(dtype, shape));
    },
    async view(handle, of, offset, shape) {
      const { dtype, data } = get(of);
      hold(handle, dtype, shape, data.subarray(offset, offset + countElements(shape)));
    },
    async write(handle, data) {
      (get(handle).data as Float32Array).set(data as Float32Array);
      countFreed(data.byteLength);
    },
    async fill(handle, value) {
      const { dtype, data } = get(handle);
      if (dtype === 'int64') (data as BigInt64Array).fill(BigInt(value));
      else (data as Float32Array).fill(value);
    },
    async copy(from, to) {
      (get(to).data as Float32Array).set(get(from).data as Float32Array);
    },
    async free(handles, sizeBytes) {
      for (const handle of handles) tensors.delete(handle);
      countFreed(sizeBytes);
    },
    async download(handle) {
      return get(handle).data.slice();
    },
    async run({ session, inputs, outputs, shapes }) {
      const bind = (ports: readonly (readonly [string, number])[]) =>
        ports.map(([name, handle]) => [name, get(handle).tensor] as const);
      const given = shapes.map(([name, sizes]) => [name, shapeTensor(sizes)] as const);
      const feeds = Object.fromEntries([...bind(inputs), ...given]);
      const fetches = Object.fromEntries(bind(outputs));
      await enterNative(() => runUncopied(session, feeds, fetches));
    },
    release: (session) => session.release(),
    collect,
    async close() {
      tensors.clear();
      collectGarbage();
    },
  };
}

/** The sizes of a shape as the int64 tensor that operators want. */
export function shapeTensor(sizes: readonly number[]): Tensor {
  return new Tensor('int64', BigInt64Array.from(sizes, BigInt), [sizes.length]) as Tensor;
}
