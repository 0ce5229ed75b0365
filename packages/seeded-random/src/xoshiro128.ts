import { openSplitmix32 } from './splitmix32.ts';

/** Uniform numbers in (0, 1) from a seed and a stream number (xoshiro128**, its state filled by splitmix32). */
export function openXoshiro128(seed: number, stream: number): () => number {
  const word = openSplitmix32(Math.imul(seed ^ 0x9e3779b9, 0x85ebca6b) + Math.imul(stream + 1, 0xc2b2ae35));
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
