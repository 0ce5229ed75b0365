import type { TensorData } from '@stillhouse/tensor-types';

/** Exponent of bfloat16 infinities and of what is no number. */
const BFLOAT16_SPECIAL = 0x7f80;

/**
 * Index of the first number that is not finite. A Uint16Array holds bits of bfloat16 numbers; codes of other types are
 * always finite.
 */
export function findNonFinite(values: TensorData): number | undefined {
  if (values instanceof Float32Array || values instanceof Float64Array) {
    // x - x is zero for every finite number and NaN for the rest.
    for (let i = 0; i < values.length; i++) if (values[i]! - values[i]! !== 0) return i;
  } else if (values instanceof Uint16Array) {
    for (let i = 0; i < values.length; i++) if ((values[i]! & BFLOAT16_SPECIAL) === BFLOAT16_SPECIAL) return i;
  }
  return undefined;
}
