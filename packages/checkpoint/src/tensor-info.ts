/** Element types of stored tensors; the names are ours, `SAFETENSORS_DTYPES` has the format's. */
export type StoredDtype =
  | 'float64'
  | 'float32'
  | 'float16'
  | 'bfloat16'
  | 'int64'
  | 'int32'
  | 'int16'
  | 'int8'
  | 'uint8'
  | 'bool';

interface DtypeSpec {
  readonly tag: string;
  readonly sizeBytes: number;
}

export const SAFETENSORS_DTYPES: { readonly [D in StoredDtype]: DtypeSpec } = {
  float64: { tag: 'F64', sizeBytes: 8 },
  float32: { tag: 'F32', sizeBytes: 4 },
  float16: { tag: 'F16', sizeBytes: 2 },
  bfloat16: { tag: 'BF16', sizeBytes: 2 },
  int64: { tag: 'I64', sizeBytes: 8 },
  int32: { tag: 'I32', sizeBytes: 4 },
  int16: { tag: 'I16', sizeBytes: 2 },
  int8: { tag: 'I8', sizeBytes: 1 },
  uint8: { tag: 'U8', sizeBytes: 1 },
  bool: { tag: 'BOOL', sizeBytes: 1 },
};

export function isFloatDtype(dtype: StoredDtype): boolean {
  return dtype.startsWith('float') || dtype === 'bfloat16';
}

/** Where one tensor lies; nothing of its elements is in memory. */
export interface TensorInfo {
  readonly name: string;
  readonly dtype: StoredDtype;
  readonly shape: readonly number[];
  /** The file, links resolved. */
  readonly file: string;
  /** From the file's start. */
  readonly offsetBytes: number;
  readonly sizeBytes: number;
}

export function countElements(shape: readonly number[]): number {
  return shape.reduce((product, dim) => product * dim, 1);
}
