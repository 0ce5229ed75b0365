import assert from 'node:assert/strict';
import type { TopKPolicy } from '@stillhouse/teacher-cache';
import fc from 'fast-check';
import { test } from 'vitest';
import { selectTopK } from './topk-selection.ts';

const VOCAB = 40;
const TEMPERATURES = [1, 2];

/** Distributions over the vocabulary, coarse so that equals occur. */
const distributions = fc.array(
  fc.array(fc.integer({ min: 0, max: 12 }), { minLength: VOCAB, maxLength: VOCAB }).map((levels) => {
    const norm = Math.log(levels.reduce((sum, level) => sum + Math.exp(level), 0));
    return Float32Array.from(levels, (level) => level - norm);
  }),
  { maxLength: 5 },
);

const byRank = (logprobs: Float32Array) =>
  [...logprobs].map((logprob, id) => ({ id, logprob })).sort((a, b) => b.logprob - a.logprob || a.id - b.id);

function select(policy: TopKPolicy, all: readonly Float32Array[], targets: readonly number[]) {
  const { pinnedIds = [], keepTarget = false } = policy;
  const ranked = all.map((logprobs) => byRank(logprobs).slice(0, policy.k));
  const kept = all.map((_, i) => [...pinnedIds, ...(keepTarget ? [targets[i]!] : [])]);
  return selectTopK(
    {
      ids: Int32Array.from(ranked.flatMap((entries) => entries.map(({ id }) => id))),
      logprobs: Float32Array.from(ranked.flatMap((entries) => entries.map(({ logprob }) => logprob))),
      keptIds: BigInt64Array.from(kept.flat(), BigInt),
      keptLogprobs: Float32Array.from(kept.flatMap((ids, i) => ids.map((id) => all[i]![id]!))),
      logZ: Float32Array.from(all.flatMap(() => [0, 1])),
    },
    policy,
    VOCAB,
  );
}

test('ids are the most probable ones that the mass asks for, and the kept ones, in order and once', () => {
  const policies = fc.record({
    k: fc.integer({ min: 1, max: VOCAB }),
    topP: fc.option(fc.constantFrom(0.3, 0.9, 0.999), { nil: undefined }),
    minK: fc.integer({ min: 1, max: 5 }),
    pinnedIds: fc.constantFrom<number[][]>([], [0], [3, VOCAB - 1]),
    keepTarget: fc.boolean(),
  });
  fc.assert(
    fc.property(policies, distributions, fc.infiniteStream(fc.nat({ max: VOCAB - 1 })), (given, all, stream) => {
      const { topP, minK, ...rest } = given;
      const least = Math.min(minK, given.k);
      const policy: TopKPolicy = {
        ...rest,
        temperatures: TEMPERATURES,
        ...(topP === undefined ? {} : { topP, minK: least }),
      };
      const targets = all.map(() => stream.next().value!);
      const { counts, ids, logprobs, logZ } = select(policy, all, targets);
      assert.equal(logZ.length, 2 * all.length);
      let start = 0;
      for (const [position, own] of all.entries()) {
        const sorted = byRank(own);
        let mass = 0;
        let enough = 0;
        while (enough < given.k && (enough < least || mass < topP!) && topP !== undefined)
          mass += Math.exp(sorted[enough++]!.logprob);
        const count = topP === undefined ? given.k : enough;
        const isKept = (id: number) => given.pinnedIds.includes(id) || (given.keepTarget && id === targets[position]);
        const wanted = sorted.filter(({ id }, rank) => rank < count || isKept(id));
        const end = start + counts[position]!;
        assert.deepEqual(
          [...ids.subarray(start, end)],
          wanted.map(({ id }) => id),
        );
        assert.deepEqual(
          [...logprobs.subarray(start, end)],
          wanted.map(({ logprob }) => logprob),
        );
        start = end;
      }
      assert.equal(ids.length, start);
    }),
    { numRuns: 500 },
  );
});
