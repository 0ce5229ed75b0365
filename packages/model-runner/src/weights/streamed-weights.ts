import {
  describeLayer,
  type FloatArrays,
  type ModelConfig,
  type ModelWeights,
  type WeightTensor,
} from '@stillhouse/checkpoint';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { DeviceTensor, Engine } from '@stillhouse/runtime';
import { countElements } from '@stillhouse/tensor-types';
import type { LayerTensors } from '../forward/forward-programs.ts';
import { uploadWeight } from './upload-weight.ts';

/**
 * A model's weights, in memory only while they are used: a layer is read from its file when it is taken, and freed
 * when it is dropped, unless all layers are kept because they fit. What is read is widened to the dtype of the
 * products.
 */
export interface StreamedWeights {
  /** Starts to read a layer, from 0, that is taken soon. */
  prefetchLayer(layer: number): void;
  takeLayer(layer: number): Promise<LayerTensors>;
  dropLayer(layer: number): void;
  /** Embeddings of the tokens of each batch, [ids, hiddenSize]; of the table only these rows are ever in memory. */
  embed(batches: readonly BigInt64Array[]): Promise<readonly FloatArrays[FloatDtype][]>;
  /** The weight of the final norm, [hiddenSize]. */
  takeFinalNorm(): Promise<DeviceTensor>;
  prefetchOutputMatrix(): void;
  /** [vocabSize, hiddenSize] */
  takeOutputMatrix(): Promise<DeviceTensor>;
  dropOutputMatrix(): void;
  /** Frees all that is still held. */
  close(): void;
}

/** How weights are held on the device. */
export interface StreamedWeightsOptions {
  readonly float: FloatDtype;
  /** Whether dropped weights stay, for the next pass. */
  readonly keepAll: boolean;
}

type Tensors = Readonly<Record<string, WeightTensor>>;

/** Float32 bytes of everything but the embedding table. */
export function measureWeights(config: ModelConfig): number {
  const layer = describeLayer(config).reduce((sum, { shape }) => sum + countElements(shape), 0);
  return 4 * (layer * config.layerCount + config.vocabSize * config.hiddenSize);
}

/** Makes a model's weights available to an engine, a part at a time. */
export function createStreamedWeights(
  engine: Engine,
  model: ModelWeights,
  { float, keepAll }: StreamedWeightsOptions,
): StreamedWeights {
  const held = new Map<string, Promise<LayerTensors>>();
  const take = (part: string, tensors: Tensors): Promise<LayerTensors> => {
    const known = held.get(part);
    if (known !== undefined) return known;
    const reading = uploadTensors(engine, tensors, float);
    reading.catch(() => {}); // A failure belongs to whoever takes the part.
    held.set(part, reading);
    return reading;
  };
  const release = (part: string): void => {
    held
      .get(part)
      ?.then((tensors) => freeTensors(engine, tensors))
      .catch(() => {});
    held.delete(part);
  };
  const drop = (part: string): void => (keepAll ? undefined : release(part));
  const takeLayer = (layer: number) => take(`layer ${layer}`, model.layers[layer]!);
  const takeHead = () => take('head', { head: model.head });
  return {
    takeLayer,
    prefetchLayer: (layer) => void takeLayer(layer),
    dropLayer: (layer) => drop(`layer ${layer}`),
    embed: (batches) => readEmbeddings(model, batches, float),
    takeFinalNorm: async () => (await take('norm', { norm: model.norm })).norm!,
    takeOutputMatrix: async () => (await takeHead()).head!,
    prefetchOutputMatrix: () => void takeHead(),
    dropOutputMatrix: () => drop('head'),
    close: () => [...held.keys()].forEach(release),
  };
}

async function uploadTensors(engine: Engine, tensors: Tensors, float: FloatDtype): Promise<LayerTensors> {
  const uploaded: Record<string, DeviceTensor> = {};
  try {
    for (const [name, tensor] of Object.entries(tensors)) uploaded[name] = await uploadWeight(engine, tensor, float);
  } catch (error) {
    freeTensors(engine, uploaded);
    throw error;
  }
  return uploaded;
}

function freeTensors(engine: Engine, tensors: LayerTensors): void {
  for (const tensor of Object.values(tensors)) engine.free(tensor);
}

/** Rows of the embedding table by id, [ids, hiddenSize] of each batch. */
async function readEmbeddings(
  model: ModelWeights,
  batches: readonly BigInt64Array[],
  float: FloatDtype,
): Promise<readonly FloatArrays[FloatDtype][]> {
  const wanted = [...new Set(batches.flatMap((ids) => Array.from(ids, Number)))].sort((a, b) => a - b);
  if (wanted.length === 0) return [];
  const width = model.config.hiddenSize;
  const rows = await model.readEmbeddingRows(wanted, float);
  const places = new Map(wanted.map((id, place) => [id, place * width]));
  return batches.map((ids) => {
    const out = float === 'float64' ? new Float64Array(ids.length * width) : new Float32Array(ids.length * width);
    ids.forEach((id, i) => {
      const place = places.get(Number(id))!;
      out.set(rows.subarray(place, place + width), i * width);
    });
    return out;
  });
}
