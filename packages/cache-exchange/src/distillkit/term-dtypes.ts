import { narrowToBfloat16, narrowToFloat16, widenBfloat16, widenFloat16 } from '@stillhouse/float-formats';
import { TERM_BYTES, type TermDtype } from './distillkit-config.ts';

/** Numbers rounded to what a dtype can hold, as doubles. */
export function roundTo(dtype: TermDtype, values: ArrayLike<number>): Float64Array {
  switch (dtype) {
    case 'float16':
      return Float64Array.from(widenFloat16(narrowToFloat16(Float32Array.from(values))));
    case 'bfloat16':
      return Float64Array.from(widenBfloat16(narrowToBfloat16(Float32Array.from(values))));
    case 'float32':
      return Float64Array.from(Float32Array.from(values));
    case 'float64':
      return Float64Array.from(values);
  }
}

/** Writes numbers in a dtype, little-endian. @returns how many bytes */
export function writeTerms(dtype: TermDtype, values: ArrayLike<number>, out: Uint8Array, offset: number): number {
  const made =
    dtype === 'float16'
      ? narrowToFloat16(Float32Array.from(values))
      : dtype === 'bfloat16'
        ? narrowToBfloat16(Float32Array.from(values))
        : dtype === 'float32'
          ? Float32Array.from(values)
          : Float64Array.from(values);
  out.set(new Uint8Array(made.buffer, made.byteOffset, made.byteLength), offset);
  return made.byteLength;
}

/** Reads `count` numbers of a dtype. */
export function readTerms(dtype: TermDtype, bytes: Uint8Array, offset: number, count: number): Float64Array {
  // A copy, aligned; the slice of a Buffer would be a view.
  const { buffer } = Uint8Array.from(bytes.subarray(offset, offset + count * TERM_BYTES[dtype]));
  switch (dtype) {
    case 'float16':
      return Float64Array.from(widenFloat16(new Uint16Array(buffer)));
    case 'bfloat16':
      return Float64Array.from(widenBfloat16(new Uint16Array(buffer)));
    case 'float32':
      return Float64Array.from(new Float32Array(buffer));
    case 'float64':
      return new Float64Array(buffer);
  }
}
