let widened: Float32Array | undefined;

function widenOne(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction === 0 ? sign * Infinity : NaN;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** binary16 bits to float32: exact, by a table of all 65,536 values. */
export function widenFloat16(bits: Uint16Array, out = new Float32Array(bits.length)): Float32Array {
  widened ??= Float32Array.from({ length: 65536 }, (_, i) => widenOne(i));
  for (let i = 0; i < bits.length; i++) out[i] = widened[bits[i]!]!;
  return out;
}

/** float32 to binary16 bits, to nearest, ties to even; beyond 65,519.99 becomes infinity, NaN stays NaN. */
export function narrowToFloat16(values: Float32Array, out = new Uint16Array(values.length)): Uint16Array {
  const wide = new Uint32Array(values.buffer, values.byteOffset, values.length);
  for (let i = 0; i < wide.length; i++) {
    const word = wide[i]!;
    const sign = (word >>> 16) & 0x8000;
    const magnitude = word & 0x7fffffff;
    if (magnitude > 0x7f800000) {
      out[i] = sign | 0x7e00;
    } else if (magnitude >= 0x477ff000) {
      out[i] = sign | 0x7c00;
    } else if (magnitude >= 0x38800000) {
      const rebased = magnitude - 0x38000000;
      out[i] = sign | ((rebased + 0xfff + ((rebased >>> 13) & 1)) >>> 13);
    } else {
      // Subnormal: the result is a whole number of steps of 2^-24.
      const steps = Math.abs(values[i]!) * 2 ** 24;
      const floor = Math.floor(steps);
      const rest = steps - floor;
      out[i] = sign | (rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor);
    }
  }
  return out;
}
