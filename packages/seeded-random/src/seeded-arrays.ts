import { openXoshiro128 } from './xoshiro128.ts';

/** Normal numbers with mean 0 and the given standard deviation (Box-Muller), the same on every machine for a seed. */
export function seededNormals(
  count: number,
  deviation: number,
  seed: number,
  stream: number,
): Float32Array<ArrayBuffer> {
  const uniform = openXoshiro128(seed, stream);
  const out = new Float32Array(count);
  for (let i = 0; i < count; i += 2) {
    const radius = deviation * Math.sqrt(-2 * Math.log(uniform()));
    const angle = 2 * Math.PI * uniform();
    out[i] = radius * Math.cos(angle);
    if (i + 1 < count) out[i + 1] = radius * Math.sin(angle);
  }
  return out;
}

/** Numbers uniform in (-bound, bound), the same on every machine for a seed. */
export function seededUniform(count: number, bound: number, seed: number, stream: number): Float32Array<ArrayBuffer> {
  const uniform = openXoshiro128(seed, stream);
  return Float32Array.from({ length: count }, () => bound * (2 * uniform() - 1));
}
