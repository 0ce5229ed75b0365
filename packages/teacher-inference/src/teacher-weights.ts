import { assertFinite, type ModelConfig, type TensorSource } from '@stillhouse/checkpoint';
import { blockParameters, type LayerTensors } from '@stillhouse/decoder';
import { widenBfloat16, widenFloat16 } from '@stillhouse/float-formats';
import type { DeviceTensor, Engine } from '@stillhouse/runtime';

const EMBEDDING = 'model.embed_tokens.weight';
const FINAL_NORM = 'model.norm.weight';

export const outputMatrixName = (config: ModelConfig) => (config.tieWordEmbeddings ? EMBEDDING : 'lm_head.weight');

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
  const layer = blockParameters(config).reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
  return 4 * (layer * config.layerCount + config.vocabSize * config.hiddenSize);
}

/** Makes the weights of a source available to an engine. @param keepAll whether dropped weights stay, for the next pass */
export function createTeacherWeights(
  engine: Engine,
  source: TensorSource,
  config: ModelConfig,
  { keepAll }: { readonly keepAll: boolean },
): TeacherWeights {
  const names = blockParameters(config).map(({ name }) => name);
  const held = new Map<string, Promise<LayerTensors>>();

  async function read(tensors: Readonly<Record<string, string>>): Promise<LayerTensors> {
    const uploaded: Record<string, DeviceTensor> = {};
    for (const [key, name] of Object.entries(tensors)) {
      const values = await source.readFloat32(name);
      uploaded[key] = engine.upload(values, 'float32', source.tensors.get(name)!.shape, { transfer: true });
    }
    return uploaded;
  }
  function take(part: string, tensors: () => Readonly<Record<string, string>>): Promise<LayerTensors> {
    const known = held.get(part);
    if (known !== undefined) return known;
    const reading = read(tensors());
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
  const takeLayer = (layer: number) =>
    take(`layer ${layer}`, () => Object.fromEntries(names.map((name) => [name, `model.layers.${layer}.${name}`])));
  const takeHead = () => take('head', () => ({ head: outputMatrixName(config) }));

  return {
    takeLayer,
    prefetchLayer: (layer) => void takeLayer(layer),
    dropLayer: (layer) => drop(`layer ${layer}`),
    embed: (batches) => readEmbeddings(source, config.hiddenSize, batches),
    takeFinalNorm: async () => (await take('norm', () => ({ norm: FINAL_NORM }))).norm!,
    takeOutputMatrix: async () => (await takeHead()).head!,
    prefetchOutputMatrix: () => void takeHead(),
    dropOutputMatrix: () => drop('head'),
  };
}

/** Rows of the embedding table by id, as float32; the table streams by once. */
async function readEmbeddings(
  source: TensorSource,
  width: number,
  batches: readonly BigInt64Array[],
): Promise<readonly Float32Array<ArrayBuffer>[]> {
  const { dtype, sizeBytes, shape } = source.tensors.get(EMBEDDING)!;
  const rowBytes = sizeBytes / shape[0]!;
  const wanted = [...new Set(batches.flatMap((ids) => Array.from(ids, Number)))].sort((a, b) => a - b);
  if (wanted.length === 0) return [];
  const stored = new Uint8Array(wanted.length * rowBytes);
  let start = 0;
  let next = 0;
  await source.readPieces(EMBEDDING, (piece) => {
    const end = start + piece.length;
    for (; next < wanted.length; next++) {
      const rowStart = wanted[next]! * rowBytes;
      if (rowStart >= end) break;
      const from = Math.max(rowStart, start);
      const to = Math.min(rowStart + rowBytes, end);
      stored.set(piece.subarray(from - start, to - start), next * rowBytes + from - rowStart);
      if (to < rowStart + rowBytes) break; // The rest is in the next piece.
    }
    start = end;
  });
  const rows = widen(stored, dtype);
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

function widen({ buffer }: Uint8Array<ArrayBuffer>, dtype: string): Float32Array | Float64Array {
  if (dtype === 'bfloat16') return widenBfloat16(new Uint16Array(buffer));
  if (dtype === 'float16') return widenFloat16(new Uint16Array(buffer));
  return dtype === 'float64' ? new Float64Array(buffer) : new Float32Array(buffer);
}

/**
 * Reads every weight once and refuses what no model can use. What is not finite has all bits of its exponent set, which
 * is faster to see than the numbers themselves.
 * @throws StillhouseError WEIGHT_NOT_FINITE naming the tensor
 */
export async function checkWeightsFinite(source: TensorSource, names: Iterable<string>): Promise<void> {
  for (const name of names) {
    const { dtype, file } = source.tensors.get(name)!;
    let isSuspect = false;
    await source.readPieces(name, (piece) => {
      isSuspect ||= mayBeInfinite(piece, dtype);
    });
    if (isSuspect) assertFinite(name, await source.readFloat32(name), file);
  }
}

function mayBeInfinite({ buffer, byteOffset, byteLength }: Uint8Array<ArrayBuffer>, dtype: string): boolean {
  if (dtype === 'float64') return true; // A number that float32 cannot hold is as bad as an infinite one.
  const exponent = dtype === 'bfloat16' ? 0x7f80 : dtype === 'float16' ? 0x7c00 : 0x7f800000;
  const words =
    dtype === 'float32'
      ? new Uint32Array(buffer, byteOffset, byteLength / 4)
      : new Uint16Array(buffer, byteOffset, byteLength / 2);
  for (let i = 0; i < words.length; i++) if ((words[i]! & exponent) === exponent) return true;
  return false;
}
