/**
 * Ten thousand random mutations over every file of small caches. Where nobody vouches for the bytes anew, each is
 * detected or harmless and no wrong label is served. Where a liar seals the manifest again over other bytes, nothing
 * but a StillhouseError comes out, in bounded memory.
 */
import assert from 'node:assert/strict';
import { fileURLToPath } from 'node:url';
import { runNode } from '@stillhouse/testing';
import { test } from 'vitest';
import type { RandomCacheShape } from '../testing/random-cache.ts';

const BASE = { rows: 4, rowsPerShard: 3, maxTokens: 9, vocabSize: 30, k: 6, temperatures: [1, 2] } as const;
const SHAPES: readonly (RandomCacheShape & { readonly mutations: number })[] = [
  {
    ...BASE,
    seed: 5,
    hiddenSize: 8,
    dtype: 'coded',
    topk: { packing: 'zstd', logprobDtype: 'uint8' },
    sampled: { draws: 5, temperature: 1, seed: 0 },
    mutations: 4000,
  },
  { ...BASE, seed: 6, hiddenSize: 8, dtype: 'int8', mutations: 3500 },
  { ...BASE, seed: 7, hiddenSize: 64, dtype: 'int8-groups', topk: { packing: 'zstd' }, mutations: 2500 },
];

const script = fileURLToPath(new URL('../testing/mutate-cache.ts', import.meta.url));

for (const { mutations, ...shape } of SHAPES) {
  test(`${mutations} mutations of a cache with ${shape.dtype} states: detected or harmless`, async () => {
    const { code, stdout, stderr } = await runNode([script, JSON.stringify(shape), String(mutations)], {
      timeoutMs: 600_000,
    });
    assert.equal(code, 0, stderr);
    const { rounds, detected, peakBytes } = JSON.parse(stdout) as Record<string, number>;
    assert.equal(rounds, mutations);
    assert.ok(detected! > mutations / 3, `only ${detected} of ${mutations} were detected`);
    assert.ok(peakBytes! < 400e6, `${Math.round(peakBytes! / 1e6)} MB of memory`);
  });
}
