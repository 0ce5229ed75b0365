import type { ModelConfig } from '@stillhouse/checkpoint';
import { batchSymbols, cutIntoBlocks, type SavedActivation, savingBlockGraphs } from '@stillhouse/decoder';
import type { TokenBatch } from '@stillhouse/model-runner';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { DeviceTensor, Engine } from '@stillhouse/runtime';
import { countElements, resolveDim, type Shape } from '@stillhouse/tensor-types';
import { type BackwardPlan, gradientOptions, type LayerBackward, layerKey } from '../plan/backward-plan.ts';

/**
 * Saved activations of every layer, in a buffer each that is kept from batch to batch and grows with the largest; on
 * WebGPU, where a part of a buffer is a copy and ONNX Runtime keeps freed buffers for the next tensor, in tensors of
 * each batch's size.
 */
export interface ActivationStore {
  /** The activations `saved` of a layer for a batch, by name. What they held before is overwritten. */
  take(layer: number, saved: readonly SavedActivation[], batch: BatchShape): Readonly<Record<string, DeviceTensor>>;
  /** Ends what `take` gave; the memory stays. */
  release(): void;
}

type BatchShape = Pick<TokenBatch, 'rows' | 'length' | 'queryBlocks'>;

function resolveShape(shape: Shape, { rows, length, queryBlocks }: BatchShape): readonly number[] {
  const symbols = batchSymbols(rows, length, queryBlocks);
  return shape.map((dim) => {
    const size = resolveDim(dim, (symbol) => symbols[symbol]);
    if (size === undefined) throw new Error(`an activation has the dimension ${dim}, which is not of the batch`);
    return size;
  });
}

/** Elements that an activation takes of its layer's buffer: each begins at a multiple of 64 bytes of float32. */
const roomFor = (shape: readonly number[]) => 16 * Math.ceil(countElements(shape) / 16);

export function createActivationStore(engine: Engine, float: FloatDtype): ActivationStore {
  const buffers = new Map<number, DeviceTensor>();
  const taken: DeviceTensor[] = [];
  const grow = (layer: number, count: number) => {
    const known = buffers.get(layer);
    if (known !== undefined && known.shape[0]! >= count) return known;
    if (known !== undefined) engine.free(known);
    const buffer = engine.allocate(float, [count]);
    buffers.set(layer, buffer);
    return buffer;
  };
  return {
    take: (layer, saved, batch) => {
      const shapes = saved.map(({ shape }) => resolveShape(shape, batch));
      const room = shapes.reduce((sum, shape) => sum + roomFor(shape), 0);
      const buffer = saved.length === 0 || engine.device === 'webgpu' ? undefined : grow(layer, room);
      let offset = 0;
      return Object.fromEntries(
        saved.map(({ name }, i) => {
          const shape = shapes[i]!;
          const tensor = buffer === undefined ? engine.allocate(float, shape) : engine.view(buffer, { offset, shape });
          offset += roomFor(shape);
          taken.push(tensor);
          return [name, tensor];
        }),
      );
    },
    release: () => {
      for (const tensor of taken.splice(0)) engine.free(tensor);
    },
  };
}

/** Bytes of float32 activations that all layers keep for a batch of [rows, length]. */
export function measureActivations(config: ModelConfig, plan: BackwardPlan, rows: number, length: number): number {
  const batch = { rows, ...cutIntoBlocks(length) };
  const measured = new Map<string, number>();
  const measure = (layer: LayerBackward) => {
    const key = layerKey(layer);
    const known = measured.get(key);
    if (known !== undefined) return known;
    const { saved } = savingBlockGraphs(config, 'float32', gradientOptions(layer, batch.queryBlocks));
    const elements = saved.reduce((sum, { shape }) => sum + roomFor(resolveShape(shape, batch)), 0);
    measured.set(key, 4 * elements);
    return 4 * elements;
  };
  return plan.layers.reduce((sum, layer) => sum + (layer === undefined ? 0 : measure(layer)), 0);
}
