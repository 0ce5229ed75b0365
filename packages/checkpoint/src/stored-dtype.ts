/** Element types a safetensors file may hold, under the names used here; all little-endian. */
export type StoredDtype =
  | 'bool'
  | 'uint8'
  | 'int8'
  | 'uint16'
  | 'int16'
  | 'uint32'
  | 'int32'
  | 'uint64'
  | 'int64'
  | 'float8e4m3'
  | 'float8e5m2'
  | 'float16'
  | 'bfloat16'
  | 'float32'
  | 'float64';

/** The floating-point types that become float32 or float64 on reading. */
export type StoredFloatDtype = 'float16' | 'bfloat16' | 'float32' | 'float64';

const CODES: Readonly<Record<StoredDtype, string>> = {
  bool: 'BOOL',
  uint8: 'U8',
  int8: 'I8',
  uint16: 'U16',
  int16: 'I16',
  uint32: 'U32',
  int32: 'I32',
  uint64: 'U64',
  int64: 'I64',
  float8e4m3: 'F8_E4M3',
  float8e5m2: 'F8_E5M2',
  float16: 'F16',
  bfloat16: 'BF16',
  float32: 'F32',
  float64: 'F64',
};

const ELEMENT_BYTES: Readonly<Record<StoredDtype, number>> = {
  bool: 1,
  uint8: 1,
  int8: 1,
  uint16: 2,
  int16: 2,
  uint32: 4,
  int32: 4,
  uint64: 8,
  int64: 8,
  float8e4m3: 1,
  float8e5m2: 1,
  float16: 2,
  bfloat16: 2,
  float32: 4,
  float64: 8,
};

const BY_CODE = new Map(Object.entries(CODES).map(([dtype, code]) => [code, dtype as StoredDtype]));

/** Every code a header may name, such as `BF16`. */
export const knownDtypeCodes: readonly string[] = [...BY_CODE.keys()];

/** The dtype behind a header's code such as `BF16`; `undefined` for an unknown one. */
export const dtypeOfCode = (code: string): StoredDtype | undefined => BY_CODE.get(code);

export const codeOfDtype = (dtype: StoredDtype): string => CODES[dtype];

export const elementBytes = (dtype: StoredDtype): number => ELEMENT_BYTES[dtype];

export function isStoredFloat(dtype: StoredDtype): dtype is StoredFloatDtype {
  return dtype === 'float32' || dtype === 'bfloat16' || dtype === 'float16' || dtype === 'float64';
}

/** The numbers that a tensor of this shape has. */
export const countElements = (shape: readonly number[]): number => shape.reduce((count, size) => count * size, 1);

/** `float32 [2, 3]`, for messages. */
export const formatTensorType = (dtype: string, shape: readonly number[]): string => `${dtype} [${shape.join(', ')}]`;
