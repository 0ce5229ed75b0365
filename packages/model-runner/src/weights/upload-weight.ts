import type { WeightTensor } from '@stillhouse/checkpoint';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { DeviceTensor, Engine } from '@stillhouse/runtime';

/**
 * One weight on the device, in its shape. @throws StillhouseError WEIGHT_NOT_FINITE, and those of `WeightTensor.read`
 */
export async function uploadWeight(engine: Engine, weight: WeightTensor, float: FloatDtype): Promise<DeviceTensor> {
  return engine.upload(await weight.read(float), float, weight.shape, { transfer: true });
}
