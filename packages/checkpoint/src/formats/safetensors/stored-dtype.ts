import { widenBfloat16, widenFloat16 } from '@stillhouse/float-formats';

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

/** Integers and booleans (0 or 1) in the typed array natural for the stored dtype. */
export type TensorArray =
  | Uint8Array<ArrayBuffer>
  | Int8Array<ArrayBuffer>
  | Uint16Array<ArrayBuffer>
  | Int16Array<ArrayBuffer>
  | Uint32Array<ArrayBuffer>
  | Int32Array<ArrayBuffer>
  | BigUint64Array<ArrayBuffer>
  | BigInt64Array<ArrayBuffer>;

/** The integers that a tensor's bytes are; `undefined` for other dtypes. */
export function viewIntegers(dtype: StoredDtype, buffer: ArrayBuffer): TensorArray | undefined {
  switch (dtype) {
    case 'bool':
    case 'uint8':
      return new Uint8Array(buffer);
    case 'int8':
      return new Int8Array(buffer);
    case 'uint16':
      return new Uint16Array(buffer);
    case 'int16':
      return new Int16Array(buffer);
    case 'uint32':
      return new Uint32Array(buffer);
    case 'int32':
      return new Int32Array(buffer);
    case 'uint64':
      return new BigUint64Array(buffer);
    case 'int64':
      return new BigInt64Array(buffer);
    default:
      return undefined;
  }
}

/** Converts stored elements into `out`; `bytes` start at a multiple of the element size. */
export function widenFloats(
  { buffer, byteOffset }: Uint8Array<ArrayBuffer>,
  dtype: StoredFloatDtype,
  out: Float32Array<ArrayBuffer> | Float64Array<ArrayBuffer>,
): void {
  if (dtype === 'float32') out.set(new Float32Array(buffer, byteOffset, out.length));
  else if (dtype === 'float64') out.set(new Float64Array(buffer, byteOffset, out.length));
  else {
    const widen = dtype === 'bfloat16' ? widenBfloat16 : widenFloat16;
    const bits = new Uint16Array(buffer, byteOffset, out.length);
    if (out instanceof Float32Array) widen(bits, out);
    else out.set(widen(bits));
  }
}

/**
 * Whether stored elements may not be finite as float32. What is not finite has all bits of its exponent set, which is
 * faster to see than the numbers themselves.
 */
export function mayHoldNonFinite(
  { buffer, byteOffset, byteLength }: Uint8Array<ArrayBuffer>,
  dtype: StoredFloatDtype,
): boolean {
  if (dtype === 'float64') return true; // A number that float32 cannot hold is as bad as an infinite one.
  const exponent = dtype === 'bfloat16' ? 0x7f80 : dtype === 'float16' ? 0x7c00 : 0x7f800000;
  const words =
    dtype === 'float32'
      ? new Uint32Array(buffer, byteOffset, byteLength / 4)
      : new Uint16Array(buffer, byteOffset, byteLength / 2);
  for (let i = 0; i < words.length; i++) if ((words[i]! & exponent) === exponent) return true;
  return false;
}
