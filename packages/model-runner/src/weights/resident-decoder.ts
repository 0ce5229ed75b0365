import { arrangeByPlace, type ModelConfig, type ModelWeights, openModelWeights } from '@stillhouse/checkpoint';
import type { LowRankAdapter } from '@stillhouse/decoder';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { DeviceTensor, Engine } from '@stillhouse/runtime';
import type { LayerTensors } from '../forward/forward-programs.ts';
import { uploadWeight } from './upload-weight.ts';

/** A whole decoder's weights on the device, in checkpoint layout, for inference. */
export interface DecoderOnDevice {
  readonly config: ModelConfig;
  readonly float: FloatDtype;
  /** [V, H] */
  readonly embedding: DeviceTensor;
  readonly layers: readonly LayerTensors[];
  /** [H] */
  readonly norm: DeviceTensor;
  /** The output matrix, [V, H]; the embedding itself where they are tied. */
  readonly head: DeviceTensor;
  /** Of the layers that have adapters. */
  readonly adapter?: LowRankAdapter;
  /** Returns all memory. */
  free(): void;
}

/**
 * Uploads a model from a Hugging Face folder or from weights that are open already, one tensor in host memory at a
 * time.
 * @throws StillhouseError WEIGHT_NOT_FINITE and those of `openModelWeights`
 */
export async function loadDecoder(
  engine: Engine,
  from: string | ModelWeights,
  float: FloatDtype = 'float32',
): Promise<DecoderOnDevice> {
  if (typeof from !== 'string') return upload(engine, from, float);
  const weights = await openModelWeights(from);
  try {
    return await upload(engine, weights, float);
  } finally {
    await weights.close();
  }
}

async function upload(engine: Engine, weights: ModelWeights, float: FloatDtype): Promise<DecoderOnDevice> {
  const { config } = weights;
  const tensors = new Map<string, DeviceTensor>();
  const free = () => {
    for (const tensor of tensors.values()) engine.free(tensor);
    tensors.clear();
  };
  try {
    for (const [name, weight] of weights.tensors) {
      tensors.set(name, await uploadWeight(engine, weight, float));
    }
  } catch (error) {
    free();
    throw error;
  }
  return { config, float, ...arrangeByPlace(config, tensors), free };
}
