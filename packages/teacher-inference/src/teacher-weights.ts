import {
  countElements,
  describeLayer,
  type ModelConfig,
  type ModelWeights,
  type WeightTensor,
} from '@stillhouse/checkpoint';
import type { LayerTensors } from '@stillhouse/decoder';
import type { DeviceTensor, Engine } from '@stillhouse/runtime';

/**
 * A teacher's weights, in memory only while they are used: a layer is read from its file when it is taken, and freed
 * when it is dropped, unless all layers are kept because they fit. What is read is widened to float32.
 */
export interface TeacherWeights {
  /** Starts to read a layer that is taken soon. */
  prefetchLayer(layer: number): void;
  takeLayer(layer: number): Promise<LayerTensors>;
  dropLayer(layer: number): void;
  /** Embeddings of the tokens of each batch, [ids, hiddenSize]; of the table only these rows are ever in memory. */
  embed(batches: readonly BigInt64Array[]): Promise<readonly Float32Array<ArrayBuffer>[]>;
  /** The weight of the final norm, [hiddenSize]. */
  takeFinalNorm(): Promise<DeviceTensor>;
  prefetchOutputMatrix(): void;
  /** [vocabSize, hiddenSize] */
  takeOutputMatrix(): Promise<DeviceTensor>;
  dropOutputMatrix(): void;
}

/** Float32 bytes of everything but the embedding table. */
export function measureWeights(config: ModelConfig): number {
  const layer = describeLayer(config).reduce((sum, { shape }) => sum + countElements(shape), 0);
  return 4 * (layer * config.layerCount + config.vocabSize * config.hiddenSize);
}

/** Makes a model's weights available to an engine. @param keepAll whether dropped weights stay, for the next pass */
export function createTeacherWeights(
  engine: Engine,
  model: ModelWeights,
  { keepAll }: { readonly keepAll: boolean },
): TeacherWeights {
  const held = new Map<string, Promise<LayerTensors>>();

  async function upload(tensors: Readonly<Record<string, WeightTensor>>): Promise<LayerTensors> {
    const uploaded: Record<string, DeviceTensor> = {};
    for (const [name, tensor] of Object.entries(tensors)) {
      uploaded[name] = engine.upload(await tensor.read('float32'), 'float32', tensor.shape, { transfer: true });
    }
    return uploaded;
  }
  function take(part: string, tensors: Readonly<Record<string, WeightTensor>>): Promise<LayerTensors> {
    const known = held.get(part);
    if (known !== undefined) return known;
    const reading = upload(tensors);
    reading.catch(() => {}); // A failure belongs to whoever takes the part.
    held.set(part, reading);
    return reading;
  }
  function drop(part: string): void {
    const reading = held.get(part);
    if (keepAll || reading === undefined) return;
    held.delete(part);
    const free = (tensors: LayerTensors) => {
      for (const tensor of Object.values(tensors)) engine.free(tensor);
    };
    reading.then(free).catch(() => {});
  }
  const takeLayer = (layer: number) => take(`layer ${layer}`, model.layers[layer]!);
  const takeHead = () => take('head', { head: model.head });

  return {
    takeLayer,
    prefetchLayer: (layer) => void takeLayer(layer),
    dropLayer: (layer) => drop(`layer ${layer}`),
    embed: (batches) => readEmbeddings(model, batches),
    takeFinalNorm: async () => (await take('norm', { norm: model.norm })).norm!,
    takeOutputMatrix: async () => (await takeHead()).head!,
    prefetchOutputMatrix: () => void takeHead(),
    dropOutputMatrix: () => drop('head'),
  };
}

/** Rows of the embedding table by id, [ids, hiddenSize] of each batch as float32. */
async function readEmbeddings(
  model: ModelWeights,
  batches: readonly BigInt64Array[],
): Promise<readonly Float32Array<ArrayBuffer>[]> {
  const wanted = [...new Set(batches.flatMap((ids) => Array.from(ids, Number)))].sort((a, b) => a - b);
  if (wanted.length === 0) return [];
  const width = model.config.hiddenSize;
  const rows = await model.readEmbeddingRows(wanted, 'float32');
  const places = new Map(wanted.map((id, place) => [id, place * width]));
  return batches.map((ids) => {
    const out = new Float32Array(ids.length * width);
    ids.forEach((id, i) => {
      const place = places.get(Number(id))!;
      out.set(rows.subarray(place, place + width), i * width);
    });
    return out;
  });
}
