import { elementBytes, TENSOR_ARRAYS, type TensorData, type TensorDtype } from '@stillhouse/tensor-types';
import { InferenceSession, Tensor } from 'onnxruntime-node';
import { type OwnModelName, readOwnModel } from '../own-models.ts';
import type { EnterNative } from '../tensor-memory.ts';

/** Bytes of the words that the runtime's own models move. */
export const WORD_BYTES = 4;

export interface WordModelOptions {
  readonly enterNative: EnterNative;
  /**
   * Options of a session whose outputs come back in main memory; with `preferredOutputLocation` they stay on the
   * device.
   */
  readonly sessionOptions: InferenceSession.SessionOptions;
}

/** The runtime's own models, which move data of any type as words. */
export interface WordModels {
  /** Runs one, made when it is first asked for. */
  run(name: OwnModelName, feeds: Record<string, Tensor>, to: 'gpu-buffer' | 'cpu'): Promise<Tensor>;
  toDevice(data: TensorData): Promise<Tensor>;
  /** A buffer of `count` elements of one value. */
  fill(dtype: TensorDtype, count: number, value: number): Promise<Tensor>;
  close(): Promise<void>;
}

export function createWordModels({ enterNative, sessionOptions }: WordModelOptions): WordModels {
  const sessions = new Map<string, InferenceSession>();

  async function run(name: OwnModelName, feeds: Record<string, Tensor>, to: 'gpu-buffer' | 'cpu'): Promise<Tensor> {
    const key = `${name} to ${to}`;
    return enterNative(async () => {
      let session = sessions.get(key);
      if (session === undefined) {
        const options = to === 'cpu' ? sessionOptions : { ...sessionOptions, preferredOutputLocation: to };
        session = await InferenceSession.create(readOwnModel(name), options);
        sessions.set(key, session);
      }
      const results = await session.run(feeds);
      return Object.values(results)[0] as Tensor;
    });
  }

  const toDevice = (data: TensorData) =>
    run('words-copy', { x: new Tensor('int32', wordsOf(data), [countWords(data.byteLength)]) }, 'gpu-buffer');

  return {
    run,
    toDevice,
    async fill(dtype, count, value) {
      const one = new TENSOR_ARRAYS[dtype](Math.max(1, WORD_BYTES / elementBytes(dtype)));
      fillArray(dtype, one, value);
      const [word, ...others] = wordsOf(one);
      if (others.some((other) => other !== word)) {
        const data = new TENSOR_ARRAYS[dtype](count);
        fillArray(dtype, data, value);
        return toDevice(data);
      }
      const words = countWords(count * elementBytes(dtype));
      const feeds = { word: new Tensor('int32', Int32Array.of(word!), [1]), count: shapeTensor([words]) };
      return run('words-fill', feeds, 'gpu-buffer');
    },
    async close() {
      for (const session of sessions.values()) await session.release();
      sessions.clear();
    },
  };
}

function fillArray(dtype: TensorDtype, data: TensorData, value: number): void {
  if (dtype === 'int64') (data as BigInt64Array).fill(BigInt(value));
  else (data as Float32Array).fill(value);
}

export const countWords = (sizeBytes: number) => Math.ceil(sizeBytes / WORD_BYTES);

/** The bytes of an array as whole words, the last one filled up with zeros; copied only where it must be. */
function wordsOf(data: TensorData): Int32Array {
  if (data.byteLength % WORD_BYTES === 0 && data.byteOffset % WORD_BYTES === 0)
    return new Int32Array(data.buffer, data.byteOffset, data.byteLength / WORD_BYTES);
  const words = new Int32Array(countWords(data.byteLength));
  new Uint8Array(words.buffer).set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  return words;
}

/** The sizes of a shape as the int64 tensor that operators want. */
export function shapeTensor(sizes: readonly number[]): Tensor {
  return new Tensor('int64', BigInt64Array.from(sizes, BigInt), [sizes.length]) as Tensor;
}
