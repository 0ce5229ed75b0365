/** bfloat16 bits to float32: exact. `out`, when given, must have the same length. */
export function widenBfloat16(bits: Uint16Array, out = new Float32Array(bits.length)): Float32Array {
  const wide = new Uint32Array(out.buffer, out.byteOffset, out.length);
  for (let i = 0; i < bits.length; i++) wide[i] = bits[i]! << 16;
  return out;
}

/** float32 to bfloat16 bits, to nearest, ties to even; NaN stays NaN, overflow becomes infinity. */
export function narrowToBfloat16(values: Float32Array, out = new Uint16Array(values.length)): Uint16Array {
  const wide = new Uint32Array(values.buffer, values.byteOffset, values.length);
  for (let i = 0; i < wide.length; i++) {
    const word = wide[i]!;
    const isNaNWord = (word & 0x7fffffff) > 0x7f800000;
    out[i] = isNaNWord ? (word >>> 16) | 0x40 : (word + 0x7fff + ((word >>> 16) & 1)) >>> 16;
  }
  return out;
}
