import assert from 'node:assert/strict';
import { randomUniforms } from '@stillhouse/testing';
import fc from 'fast-check';
import { test } from 'vitest';
import { normaliseDescription, type SampledLabels, type TopKLabels, type TopKPolicy } from '../index.ts';
import { describeRandomCache, randomSampled, randomTopK } from '../testing/random-cache.ts';
import { checkSampled, checkTopK } from './distribution-checks.ts';

const VOCAB = 60;

const describe = (topk: Partial<TopKPolicy> & { readonly k: number }, draws = 1) =>
  normaliseDescription(
    describeRandomCache({
      seed: 1,
      rows: 1,
      rowsPerShard: 1,
      maxTokens: 1,
      vocabSize: VOCAB,
      hiddenSize: 1,
      k: topk.k,
      topk,
      sampled: { draws, temperature: 2 },
    }),
  );

const policies = fc
  .record({
    k: fc.integer({ min: 1, max: VOCAB }),
    packed: fc.option(fc.constantFrom('float32', 'float16', 'uint16', 'uint8')),
    topP: fc.option(fc.constantFrom(0.3, 0.9, 0.999)),
    minK: fc.integer({ min: 1, max: 4 }),
    pinnedIds: fc.constantFrom([], [0], [3, VOCAB - 1]),
    keepTarget: fc.boolean(),
    temperatures: fc.constantFrom([1], [1, 2, 4], [0.01, 0.5, 1000]),
  })
  .map(
    ({ packed, topP, minK, ...policy }): TopKPolicy => ({
      ...policy,
      ...(packed === null ? {} : { packing: 'zstd', logprobDtype: packed }),
      ...(topP === null ? {} : { topP, minK: Math.min(minK, policy.k) }),
    }),
  );

const randomTargets = (random: () => number, positions: number) =>
  Int32Array.from({ length: positions }, () => Math.floor(random() * VOCAB));

test('top-k labels of every policy pass, whatever the distribution', () => {
  fc.assert(
    fc.property(policies, fc.nat(), fc.nat({ max: 6 }), (policy, seed, positions) => {
      const description = describe(policy);
      const random = randomUniforms(seed);
      const targets = randomTargets(random, positions);
      const labels = randomTopK(random, targets, description);
      assert.deepEqual([...checkTopK(labels, targets, description)], []);
    }),
    { numRuns: 1000 },
  );
});

test('of a tail that is unknown there is no log_z, and nothing that the top k must leave', () => {
  const labels = {
    counts: Int32Array.of(2),
    ids: Int32Array.of(7, 5),
    logprobs: Float32Array.of(-5, -6),
    logZ: new Float32Array(),
  };
  const check = (one: TopKLabels) => [
    ...checkTopK(one, Int32Array.of(5), describe({ k: 2, tail: 'unknown', temperatures: [] })),
  ];
  assert.deepEqual(check(labels), []);
  assert.match(check({ ...labels, logZ: Float32Array.of(0) })[0]!, /log_z has 1 numbers, expected 1 x 0/);
  const certain = { ...labels, logprobs: Float32Array.of(0, -1) };
  assert.match(check(certain)[0]!, /the probabilities add up to 1\.36/);
  const exact = [
    ...checkTopK({ ...labels, logZ: Float32Array.of(0) }, Int32Array.of(5), describe({ k: 2, temperatures: [1] })),
  ];
  assert.match(exact[0]!, /the top k allow at most/);
});

/** Arrays with one number changed. */
const change = <Labels extends object, Key extends keyof Labels>(
  labels: Labels,
  key: Key,
  index: number,
  value: number,
): Labels => {
  const copy = (labels[key] as unknown as Float32Array).slice();
  copy[index] = value;
  return { ...labels, [key]: copy };
};

test('every single change to a field of top-k labels is found', () => {
  fc.assert(
    fc.property(
      policies,
      fc.nat(),
      fc.integer({ min: 1, max: 6 }),
      fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
      (policy, seed, positions, place) => {
        const description = describe(policy);
        const random = randomUniforms(seed);
        const targets = randomTargets(random, positions);
        const labels = randomTopK(random, targets, description);
        const at = (length: number) => Math.floor(place * length);
        const entry = at(labels.ids.length);
        const count = at(positions);
        const temperature = labels.logZ.length === 0 ? 0 : at(labels.logZ.length);
        const starts = [0];
        for (const size of labels.counts) starts.push(starts.at(-1)! + size);
        const position = starts.findLastIndex((start) => start <= entry);
        const { pinnedIds = [], keepTarget = false } = policy;
        const kept = [...pinnedIds, ...(keepTarget ? [targets[position]!] : [])];
        const other = [...Array(VOCAB).keys()].find(
          (id) => !labels.ids.subarray(starts[position], starts[position + 1]).includes(id),
        );
        const damaged: readonly (readonly [string, TopKLabels])[] = [
          ['a count more', change(labels, 'counts', count, labels.counts[count]! + 1)],
          ['a count less', change(labels, 'counts', count, labels.counts[count]! - 1)],
          ['an id below 0', change(labels, 'ids', entry, -1)],
          ['an id beyond', change(labels, 'ids', entry, VOCAB)],
          ...(starts[position + 1]! - starts[position]! > 1
            ? [
                [
                  'an id twice',
                  change(labels, 'ids', entry, labels.ids[entry === starts[position] ? entry + 1 : entry - 1]!),
                ] as const,
              ]
            : []),
          ...(kept.includes(labels.ids[entry]!) && other !== undefined
            ? [['a kept id gone', change(labels, 'ids', entry, other)] as const]
            : []),
          ['a logprob that is none', change(labels, 'logprobs', entry, Number.NaN)],
          ['a logprob of nothing', change(labels, 'logprobs', entry, -Infinity)],
          ['a logprob above 0', change(labels, 'logprobs', entry, 0.01)],
          ['a log_z that is none', change(labels, 'logZ', temperature, Number.NaN)],
          [
            'a log_z far above',
            change(labels, 'logZ', temperature, labels.logZ[temperature]! + 10 + Math.abs(labels.logZ[temperature]!)),
          ],
          [
            'a log_z far below',
            change(labels, 'logZ', temperature, labels.logZ[temperature]! - 10 - Math.abs(labels.logZ[temperature]!)),
          ],
          ['a logprob less', { ...labels, logprobs: labels.logprobs.slice(1) }],
          ['a log_z less', { ...labels, logZ: labels.logZ.slice(1) }],
        ];
        for (const [what, bad] of damaged)
          assert.notDeepEqual([...checkTopK(bad, targets, description)], [], `${what} at entry ${entry}`);
        assert.notDeepEqual([...checkTopK(labels, targets.slice(1), description)], [], 'a position less');
      },
    ),
    { numRuns: 500 },
  );
});

test('too little mass is found where the policy is by mass, and ids out of their order', () => {
  const description = describe({ k: 20, temperatures: [1], topP: 0.9, minK: 2 });
  const targets = Int32Array.of(5);
  const logprobs = Float32Array.of(Math.log(0.5), Math.log(0.2));
  const labels = { counts: Int32Array.of(2), ids: Int32Array.of(7, 5), logprobs, logZ: Float32Array.of(0) };
  const [problem] = checkTopK(labels, targets, description);
  assert.match(problem!, /2 entries hold a mass of 0\.700000, fewer than 20 are to hold 0\.9/);
  const swapped = { ...labels, logprobs: Float32Array.of(Math.log(0.2), Math.log(0.75)) };
  assert.match([...checkTopK(swapped, targets, description)][0]!, /not by descending probability/);
});

test('an infinite log_z is found at every temperature', () => {
  const description = describe({ k: 2, temperatures: [1, 2, 4] });
  const logprobs = Float32Array.of(Math.log(0.5), Math.log(0.5));
  const sound = [1, 2, 4].map((temperature) => Math.log(2 * 0.5 ** (1 / temperature)));
  const labels = { counts: Int32Array.of(2), ids: Int32Array.of(7, 5), logprobs, logZ: Float32Array.from(sound) };
  assert.deepEqual([...checkTopK(labels, Int32Array.of(5), description)], []);
  for (const [i, temperature] of [1, 2, 4].entries())
    for (const value of [Infinity, -Infinity])
      assert.deepEqual(
        [...checkTopK(change(labels, 'logZ', i, value), Int32Array.of(5), description)],
        [`position 0: log_z at T=${temperature} is ${value}`],
      );
});

test('an id kept for another reason than its rank does not bound the tail', () => {
  const topk = { k: 2, temperatures: [1, 2], pinnedIds: [9], keepTarget: true };
  // Half on id 1, the rest even: 0.5 / 58 each but for ids 9 and 5, which are next to impossible.
  const even = Math.log(0.5 / (VOCAB - 3));
  const labels: TopKLabels = {
    counts: Int32Array.of(4),
    ids: Int32Array.of(1, 2, 5, 9),
    logprobs: Float32Array.of(Math.log(0.5), even, -40, -50),
    logZ: Float32Array.of(0, Math.log(Math.sqrt(0.5) + (VOCAB - 3) * Math.exp(even / 2))),
  };
  assert.deepEqual([...checkTopK(labels, Int32Array.of(5), describe(topk))], []);
  assert.match([...checkTopK(labels, Int32Array.of(6), describe(topk))][0]!, /the target 6 is missing/);
  const unexplained = describe({ ...topk, k: 4, pinnedIds: [], keepTarget: false });
  assert.match([...checkTopK(labels, Int32Array.of(5), unexplained)][0]!, /log_z at T=1 is 0, the top k allow/);
});

test('sampled labels pass, and every single change to a field is found', () => {
  fc.assert(
    fc.property(fc.constantFrom(1, 2, 50), fc.nat(), fc.integer({ min: 1, max: 6 }), (draws, seed, positions) => {
      const description = describe({ k: 1 }, draws);
      const random = randomUniforms(seed);
      const labels = randomSampled(random, positions, description);
      const check = (bad: SampledLabels) => [...checkSampled(bad, positions, description)];
      assert.deepEqual(check(labels), []);
      assert.deepEqual([...checkSampled(randomSampled(random, 0, description), 0, description)], []);
      const entry = Math.floor(random() * labels.ids.length);
      const count = Math.floor(random() * positions);
      const damaged: readonly (readonly [string, SampledLabels])[] = [
        ['a count more', change(labels, 'counts', count, labels.counts[count]! + 1)],
        ['a count less', change(labels, 'counts', count, labels.counts[count]! - 1)],
        ['an id below 0', change(labels, 'ids', entry, -1)],
        ['an id beyond', change(labels, 'ids', entry, VOCAB)],
        ['a draw more', change(labels, 'draws', entry, labels.draws[entry]! + 1)],
        ['a draw less', change(labels, 'draws', entry, labels.draws[entry]! - 1)],
        ['an id less', { ...labels, ids: labels.ids.slice(1) }],
        ['a number of draws less', { ...labels, draws: labels.draws.slice(1) }],
      ];
      for (const [what, bad] of damaged) assert.notDeepEqual(check(bad), [], what);
      const start = labels.counts.findIndex((size) => size > 1);
      if (start < 0) return;
      const first = labels.counts.subarray(0, start).reduce((sum, size) => sum + size, 0);
      assert.match(check(change(labels, 'ids', first, labels.ids[first + 1]!))[0]!, /occurs twice/);
    }),
    { numRuns: 200 },
  );
});

test('labels pass up to the tolerance and not beyond, quick check or slow', () => {
  fc.assert(
    fc.property(
      fc.nat(),
      fc.integer({ min: 1, max: VOCAB - 1 }),
      fc.constantFrom([1], [1, 2, 4], [4, 1, 2], [1, 3], [0.5, 1, 8]),
      fc.constantFrom('low', 'high', 'one', 'mass'),
      fc.constantFrom(0, 0.85, 0.95, 0.99, 1.01, 1.05, 1.2),
      (seed, k, temperatures, bound, share) => {
        const random = randomUniforms(seed);
        const description = describe({ k, temperatures });
        const logits = Float64Array.from({ length: VOCAB }, () => 6 * random());
        const sorted = logits.sort().reverse();
        const logSum = (values: Float64Array) => Math.log(values.reduce((sum, value) => sum + Math.exp(value), 0));
        const logprobs = Float32Array.from(sorted.subarray(0, k), (logit) => logit - logSum(sorted));
        const at = temperatures.findIndex(
          (temperature) => (bound === 'one' || bound === 'mass') === (temperature === 1),
        );
        fc.pre(at >= 0);
        const temperature = temperatures[at]!;
        const stored = (t: number) => Float64Array.from(logprobs, (logprob) => logprob / t);
        const tail = (t: number) => (VOCAB - k) * Math.exp(logprobs[k - 1]! / t);
        const logZ = Float32Array.from(temperatures, (t) =>
          t === 1 ? 0 : logSum(Float64Array.from([...stored(t), Math.log(tail(t) / 2)])),
        );
        const edge =
          bound === 'low'
            ? logSum(stored(temperature))
            : logSum(Float64Array.from([...stored(temperature), Math.log(tail(temperature))]));
        const miss = share * 1e-3 * Math.max(1, Math.abs(edge));
        if (bound === 'low') logZ[at] = edge - miss;
        if (bound === 'high') logZ[at] = edge + miss;
        if (bound === 'one') logZ[at] = share * 1e-3;
        if (bound === 'mass') {
          // All the mass is in the entries, and a little more.
          const excess = Math.log1p(share * 1e-3) - logSum(stored(1));
          for (let i = 0; i < k; i++) logprobs[i]! += excess;
          fc.pre(logprobs[0]! < 0.9e-3);
          for (const [i, t] of temperatures.entries()) if (t !== 1) logZ[i] = logSum(stored(t));
        }
        const labels = { counts: Int32Array.of(k), ids: Int32Array.from({ length: k }, (_, i) => i), logprobs, logZ };
        const problems = [...checkTopK(labels, Int32Array.of(0), description)];
        assert.equal(problems.length > 0, share > 1, `${bound} at ${share}: ${problems}`);
      },
    ),
    { numRuns: 2000 },
  );
});
