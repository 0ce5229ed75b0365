import assert from 'node:assert/strict';
import { test } from 'vitest';
import {
  type CacheDescription,
  keepsWholeVocabulary,
  largestTopKCount,
  normaliseDescription,
  type SampledPolicy,
  type TopKPolicy,
} from '../index.ts';
import { describeRandomCache } from '../testing/random-cache.ts';

const base = describeRandomCache({
  seed: 1,
  rows: 1,
  rowsPerShard: 1,
  maxTokens: 3,
  vocabSize: 100,
  hiddenSize: 1,
  k: 8,
});

const withTopK = (change: Partial<TopKPolicy>): CacheDescription => ({
  ...base,
  labels: { ...base.labels, topk: { k: 8, temperatures: [1], ...change } },
});
const withSampled = (sampled: SampledPolicy): CacheDescription => ({ ...base, labels: { ...base.labels, sampled } });

test('what has its default is left out, so that older descriptions stay what they were', () => {
  const { labels } = normaliseDescription({
    ...base,
    labels: {
      ...base.labels,
      topk: {
        k: 8,
        temperatures: [1],
        tail: 'exact',
        packing: 'plain',
        logprobDtype: 'float32',
        pinnedIds: [],
        keepTarget: false,
      },
      sampled: null,
    },
  });
  assert.deepEqual(labels.topk, { k: 8, temperatures: [1] });
  assert.equal('sampled' in labels, false);
  assert.deepEqual(normaliseDescription(withSampled({ draws: 5, temperature: 2, seed: 0 })).labels.sampled, {
    draws: 5,
    temperature: 2,
  });
  const policy: TopKPolicy = {
    k: 8,
    temperatures: [1, 2],
    packing: 'zstd',
    logprobDtype: 'uint8',
    topP: 0.999,
    minK: 2,
    pinnedIds: [0, 7, 99],
    keepTarget: true,
  };
  assert.deepEqual(normaliseDescription(withTopK(policy)).labels.topk, policy);
});

test('only a fixed k of the whole vocabulary leaves nothing outside', () => {
  assert.equal(keepsWholeVocabulary({ k: 100, temperatures: [1] }, 100), true);
  assert.equal(keepsWholeVocabulary({ k: 99, temperatures: [1] }, 100), false);
  assert.equal(keepsWholeVocabulary({ k: 100, temperatures: [1], topP: 0.9, minK: 1 }, 100), false);
  assert.equal(largestTopKCount({ k: 99, temperatures: [1], pinnedIds: [0, 1], keepTarget: true }, 100), 100);
  assert.equal(largestTopKCount({ k: 8, temperatures: [1], pinnedIds: [0, 1], keepTarget: true }, 100), 11);
});

test('policies that cannot be are refused with what is wrong', () => {
  const cases: readonly (readonly [RegExp, CacheDescription])[] = [
    [/tail is unknown; expected exact or unknown, got none/, withTopK({ tail: 'none' as 'exact' })],
    [/a tail that is unknown has no log_z; expected no temperatures, got 1/, withTopK({ tail: 'unknown' })],
    [/temperatures is empty/, withTopK({ temperatures: [] })],
    [/packing is unknown; expected plain or zstd, got lz4/, withTopK({ packing: 'lz4' as 'zstd' })],
    [/logprobDtype is unknown.*got int4/, withTopK({ packing: 'zstd', logprobDtype: 'int4' as 'uint8' })],
    [/plain top-k labels hold float32.*got uint8/, withTopK({ logprobDtype: 'uint8' })],
    [/topP and minK go together/, withTopK({ topP: 0.9 })],
    [/topP and minK go together/, withTopK({ minK: 2 })],
    [/topP is no mass.*got 1/, withTopK({ topP: 1, minK: 1 })],
    [/topP is no mass.*got 0/, withTopK({ topP: 0, minK: 1 })],
    [/minK is not a possible number.*at most 8, got 9/, withTopK({ topP: 0.9, minK: 9 })],
    [/minK is not a possible number.*got 0/, withTopK({ topP: 0.9, minK: 0 })],
    [/pinnedIds is not a possible number.*at most 99, got 100/, withTopK({ pinnedIds: [100] })],
    [/pinnedIds is not ascending.*above 5, got 5/, withTopK({ pinnedIds: [5, 5] })],
    [/keepTarget is not true or false/, withTopK({ keepTarget: 1 as unknown as boolean })],
    [/draws is not a possible number.*at least 1 and at most 65535, got 0/, withSampled({ draws: 0, temperature: 1 })],
    [/draws is not a possible number.*got 65536/, withSampled({ draws: 65_536, temperature: 1 })],
    [/a temperature is out of range.*got 0/, withSampled({ draws: 1, temperature: 0 })],
    [/seed is not a possible number.*got 0.5/, withSampled({ draws: 1, temperature: 1, seed: 0.5 })],
    [/labels but no teacher/, { ...withSampled({ draws: 1, temperature: 1 }), teacher: null }],
  ];
  for (const [message, description] of cases)
    assert.throws(() => normaliseDescription(description), { code: 'CACHE_DESCRIPTION_INVALID', message });
  const wide = { ...withTopK({ k: 65_536, packing: 'zstd' }), teacher: { ...base.teacher!, vocabSize: 100_000 } };
  assert.throws(() => normaliseDescription(wide), /too many entries; expected at most 65535/);
});
