/** Index of the first NaN or infinity. */
export function findNonFinite(values: Float32Array | Float64Array): number | undefined {
  for (let index = 0; index < values.length; index++) {
    const value = values[index]!;
    // Zero for every finite number, NaN for the rest.
    if (value - value !== 0) return index;
  }
  return undefined;
}
