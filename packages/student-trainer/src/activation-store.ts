import { countElements, type ModelConfig } from '@stillhouse/checkpoint';
import { type SavedActivation, savingBlockGraphs } from '@stillhouse/decoder';
import { type FloatDtype, resolveDim, type Shape } from '@stillhouse/onnx-graph';
import type { DeviceTensor, Engine } from '@stillhouse/runtime';
import { type BackwardPlan, gradientOptions, type LayerBackward, layerKey } from './backward-plan.ts';

/**
 * Saved activations of every layer, in buffers that are kept from batch to batch and grow with the largest; on WebGPU, where
 * a part of a buffer is a copy and ONNX Runtime keeps freed buffers for the next tensor, in tensors of each batch's size.
 */
export interface ActivationStore {
  /** The activations `saved` of a layer for a batch of [rows, length], by name. What they held before is overwritten. */
  take(
    layer: number,
    saved: readonly SavedActivation[],
    rows: number,
    length: number,
  ): Readonly<Record<string, DeviceTensor>>;
  /** Ends what `take` gave; the memory stays. */
  release(): void;
}

function resolveShape(shape: Shape, rows: number, length: number): readonly number[] {
  return shape.map((dim) => {
    const size = resolveDim(dim, { B: rows, T: length });
    if (size === undefined) throw new Error(`an activation has the dimension ${dim}, which is not of the batch`);
    return size;
  });
}

export function createActivationStore(engine: Engine, float: FloatDtype): ActivationStore {
  const buffers = new Map<string, DeviceTensor>();
  const taken: DeviceTensor[] = [];
  const grow = (key: string, count: number) => {
    const known = buffers.get(key);
    if (known !== undefined && known.shape[0]! >= count) return known;
    if (known !== undefined) engine.free(known);
    const buffer = engine.allocate(float, [count]);
    buffers.set(key, buffer);
    return buffer;
  };
  return {
    take: (layer, saved, rows, length) =>
      Object.fromEntries(
        saved.map(({ name, shape }) => {
          const resolved = resolveShape(shape, rows, length);
          const tensor =
            engine.device === 'webgpu'
              ? engine.allocate(float, resolved)
              : engine.view(grow(`${layer} ${name}`, countElements(resolved)), { offset: 0, shape: resolved });
          taken.push(tensor);
          return [name, tensor];
        }),
      ),
    release: () => {
      for (const tensor of taken.splice(0)) engine.free(tensor);
    },
  };
}

/** Bytes of float32 activations that all layers keep for a batch of [rows, length]. */
export function measureActivations(config: ModelConfig, plan: BackwardPlan, rows: number, length: number): number {
  const measured = new Map<string, number>();
  const measure = (layer: LayerBackward) => {
    const key = layerKey(layer);
    const known = measured.get(key);
    if (known !== undefined) return known;
    const { saved } = savingBlockGraphs(config, 'float32', gradientOptions(layer));
    const elements = saved.reduce((sum, { shape }) => sum + countElements(resolveShape(shape, rows, length)), 0);
    measured.set(key, 4 * elements);
    return 4 * elements;
  };
  return plan.layers.reduce((sum, layer) => sum + (layer === undefined ? 0 : measure(layer)), 0);
}
