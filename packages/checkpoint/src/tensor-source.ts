/** Floating-point numbers as a program takes them, by dtype. */
export interface FloatArrays {
  readonly float32: Float32Array<ArrayBuffer>;
  readonly float64: Float64Array<ArrayBuffer>;
}

/** What a source says of a tensor before it is read. */
export interface StoredTensor {
  readonly name: string;
  /** Row-major; empty for a scalar. */
  readonly shape: readonly number[];
  /** How the numbers are stored, in the words of the format, e.g. `bfloat16`. */
  readonly dtype: string;
  /** Whether it can be read as floating-point numbers. */
  readonly isFloat: boolean;
  /** The file that holds it, links resolved; names it in errors. */
  readonly file: string;
}

/**
 * Named tensors in some file format. Only what describes them is in memory; every read takes a tensor from disk into
 * memory of its own, so that its buffer can be transferred to a worker.
 *
 * Reads throw StillhouseError TENSOR_UNKNOWN, TENSOR_DTYPE (it cannot be read so), and what the format throws of files
 * that are damaged.
 */
export interface TensorSource {
  readonly tensors: ReadonlyMap<string, StoredTensor>;
  /** The whole tensor. float64 is exact; float32 too, but for numbers that are stored wider, which are rounded. */
  read<Float extends keyof FloatArrays>(name: string, float: Float): Promise<FloatArrays[Float]>;
  /** [rows, ...] of a tensor by their places in its first dimension, ascending; the others are never all in memory. */
  readRows<Float extends keyof FloatArrays>(
    name: string,
    rows: readonly number[],
    float: Float,
  ): Promise<FloatArrays[Float]>;
  /** Whether an element may be no finite float32, found by reading it once in pieces; `false` is certain. */
  mayHoldNonFinite(name: string): Promise<boolean>;
  /** The bytes as they are stored, in order, in pieces that are valid until the next is asked for. */
  streamStored(name: string): AsyncIterable<Uint8Array<ArrayBuffer>>;
  close(): Promise<void>;
}

export const allocateFloats = <Float extends keyof FloatArrays>(float: Float, length: number) =>
  (float === 'float64' ? new Float64Array(length) : new Float32Array(length)) as FloatArrays[Float];
