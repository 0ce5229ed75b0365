import { StillhouseError } from '@stillhouse/errors';
import { formatShape, type TensorDtype } from '@stillhouse/tensor-types';
import type { DeviceTensor } from './tensor.ts';

interface Allocation {
  readonly sizeBytes: number;
  /** The first is the tensor that owns the memory, the others are views of it. */
  readonly handles: Set<number>;
}

/** The live tensors of an engine, views included, as the main thread knows them. */
export interface TensorTable {
  /** Bytes of the tensors that own their memory. */
  allocatedBytes(): number;
  /** The handle of a live tensor. @throws TENSOR_FREED */
  use(where: string, tensor: DeviceTensor): number;
  /** A new tensor, or a view of the live tensor `of`. */
  hold(dtype: TensorDtype, shape: readonly number[], sizeBytes: number, of?: DeviceTensor): DeviceTensor;
  /** Ends a live tensor and all views of it. @returns what ended, and the bytes that return */
  end(handle: number): { readonly handles: readonly number[]; readonly sizeBytes: number };
}

let nextHandle = 1;

export function createTensorTable(): TensorTable {
  const allocations = new Map<number, Allocation>();
  let allocatedBytes = 0;
  return {
    allocatedBytes: () => allocatedBytes,
    use(where, tensor) {
      if (allocations.has(tensor.handle)) return tensor.handle;
      throw new StillhouseError({
        code: 'TENSOR_FREED',
        where,
        problem: `the ${tensor.dtype} tensor ${formatShape(tensor.shape)} was freed or belongs to another engine`,
      });
    },
    hold(dtype, shape, sizeBytes, of) {
      const handle = nextHandle++;
      const allocation = of === undefined ? { sizeBytes, handles: new Set<number>() } : allocations.get(of.handle)!;
      allocation.handles.add(handle);
      allocations.set(handle, allocation);
      if (of === undefined) allocatedBytes += sizeBytes;
      return { handle, dtype, shape: [...shape], sizeBytes };
    },
    end(handle) {
      const allocation = allocations.get(handle)!;
      const isOwner = allocation.handles.values().next().value === handle;
      const handles = isOwner ? [...allocation.handles] : [handle];
      for (const one of handles) {
        allocations.delete(one);
        allocation.handles.delete(one);
      }
      const sizeBytes = isOwner ? allocation.sizeBytes : 0;
      allocatedBytes -= sizeBytes;
      return { handles, sizeBytes };
    },
  };
}
