import { arrangeByPlace, type ModelConfig, type ModelWeights, openModelWeights } from '@stillhouse/checkpoint';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { Call, DeviceTensor, Engine } from '@stillhouse/runtime';
import {
  type BatchTensors,
  blockCall,
  embeddingCall,
  type ForwardPrograms,
  type LayerTensors,
  takeLayerPrograms,
} from './forward-pass.ts';
import type { LowRankAdapter } from './low-rank-adapter.ts';

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
 * Uploads a model from a Hugging Face folder or from weights that are open already, one tensor in host memory at a time.
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
      tensors.set(name, engine.upload(await weight.read(float), float, weight.shape, { transfer: true }));
    }
  } catch (error) {
    free();
    throw error;
  }
  return { config, float, ...arrangeByPlace(config, tensors), free };
}

/**
 * A forward pass that keeps nothing but the residual stream after the last layer, [B·T, H].
 * @param buffers two tensors [B·T, H] that the layers write in turns
 * @returns the calls, and which of the buffers holds the result
 */
export async function residualStreamCalls(
  programs: ForwardPrograms,
  model: DecoderOnDevice,
  batch: BatchTensors,
  buffers: readonly [DeviceTensor, DeviceTensor],
): Promise<{ readonly calls: readonly Call[]; readonly x: DeviceTensor }> {
  const programsOfLayer = await takeLayerPrograms(programs, batch);
  const at = (layer: number) => buffers[layer % 2 === 0 ? 0 : 1];
  const calls = [
    ...batch.biasCalls,
    embeddingCall(programs, batch, model.embedding, at(0)),
    ...model.layers.map((weights, layer) =>
      blockCall(programsOfLayer, batch, weights, { x: at(layer), y: at(layer + 1) }),
    ),
  ];
  return { calls, x: at(model.layers.length) };
}
