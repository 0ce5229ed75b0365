/** Uniform numbers in (0, 1) from a seed and a stream number (xoshiro128**). */
function seededUniforms(seed: number, stream: number): () => number {
  let mix = (Math.imul(seed ^ 0x9e3779b9, 0x85ebca6b) + Math.imul(stream + 1, 0xc2b2ae35)) >>> 0;
  const word = () => {
    mix = (mix + 0x9e3779b9) >>> 0;
    let z = Math.imul(mix ^ (mix >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return (z ^ (z >>> 15)) >>> 0;
  };
  const s = Uint32Array.of(word(), word(), word(), word() | 1);
  const rotate = (x: number, k: number) => ((x << k) | (x >>> (32 - k))) >>> 0;
  return () => {
    const result = Math.imul(rotate(Math.imul(s[1]!, 5), 7), 9) >>> 0;
    const t = s[1]! << 9;
    s[2]! ^= s[0]!;
    s[3]! ^= s[1]!;
    s[1]! ^= s[2]!;
    s[0]! ^= s[3]!;
    s[2]! ^= t;
    s[3] = rotate(s[3]!, 11);
    return (result + 0.5) / 2 ** 32;
  };
}

/** Normal numbers with mean 0 and the given standard deviation (Box-Muller), the same on every machine for a seed. */
export function seededNormals(
  count: number,
  deviation: number,
  seed: number,
  stream: number,
): Float32Array<ArrayBuffer> {
  const uniform = seededUniforms(seed, stream);
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
  const uniform = seededUniforms(seed, stream);
  return Float32Array.from({ length: count }, () => bound * (2 * uniform() - 1));
}
