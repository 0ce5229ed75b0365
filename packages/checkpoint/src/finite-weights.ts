import { StillhouseError } from '@stillhouse/errors';

/**
 * Refuses weights with NaN or infinity.
 * @throws StillhouseError WEIGHT_NOT_FINITE naming the tensor and the first bad element's index
 */
export function assertFinite(name: string, values: Float32Array | Float64Array, file: string): void {
  for (let index = 0; index < values.length; index++) {
    const value = values[index]!;
    // Zero for every finite number, NaN for the rest.
    if (value - value === 0) continue;
    throw new StillhouseError({
      code: 'WEIGHT_NOT_FINITE',
      where: file,
      problem: `tensor ${name} holds a value that is not a number a model can use, at element ${index}`,
      expected: 'finite values',
      got: String(value),
      remedy: 'The model is damaged or its training diverged: use another copy',
    });
  }
}
