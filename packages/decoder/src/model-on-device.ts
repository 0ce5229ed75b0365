import {
  assertFinite,
  describeParameters,
  type ModelConfig,
  openModelWeights,
  readModelConfig,
  type TensorSource,
} from '@stillhouse/checkpoint';
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

export interface DecoderSource {
  readonly config: ModelConfig;
  readonly source: TensorSource;
}

/**
 * Uploads a model from a Hugging Face folder or from weights that are open already, one tensor in host memory at a time.
 * @throws StillhouseError WEIGHT_NOT_FINITE and those of `readModelConfig` and `openModelWeights`
 */
export async function loadDecoder(
  engine: Engine,
  from: string | DecoderSource,
  float: FloatDtype = 'float32',
): Promise<DecoderOnDevice> {
  if (typeof from !== 'string') return upload(engine, from, float);
  const config = await readModelConfig(from);
  const source = await openModelWeights(from, config);
  try {
    return await upload(engine, { config, source }, float);
  } finally {
    await source.close();
  }
}

async function upload(engine: Engine, { config, source }: DecoderSource, float: FloatDtype): Promise<DecoderOnDevice> {
  const tensors = new Map<string, DeviceTensor>();
  const free = () => {
    for (const tensor of tensors.values()) engine.free(tensor);
    tensors.clear();
  };
  try {
    for (const { name, shape } of describeParameters(config)) {
      const data = await (float === 'float64' ? source.readFloat64(name) : source.readFloat32(name));
      assertFinite(name, data, source.tensors.get(name)!.file);
      tensors.set(name, engine.upload(data, float, shape, { transfer: true }));
    }
  } catch (error) {
    free();
    throw error;
  }
  const layer = (index: number): LayerTensors => {
    const prefix = `model.layers.${index}.`;
    const own = [...tensors].filter(([name]) => name.startsWith(prefix));
    return Object.fromEntries(own.map(([name, tensor]) => [name.slice(prefix.length), tensor]));
  };
  const embedding = tensors.get('model.embed_tokens.weight')!;
  return {
    config,
    float,
    embedding,
    layers: Array.from({ length: config.layerCount }, (_, index) => layer(index)),
    norm: tensors.get('model.norm.weight')!,
    head: config.tieWordEmbeddings ? embedding : tensors.get('lm_head.weight')!,
    free,
  };
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
    ...model.layers.map((weights, layer) => blockCall(programsOfLayer, batch, weights, at(layer), at(layer + 1))),
  ];
  return { calls, x: at(model.layers.length) };
}
