import assert from 'node:assert/strict';
import { randomUniforms } from '@stillhouse/testing';
import fc from 'fast-check';
import { test } from 'vitest';
import type { TopKPolicy } from '../format/label-policy.ts';
import type { TopKLabels } from '../format/labelled-row.ts';
import { openSoundCheck, TOLERANCE } from './sound-topk.ts';
import { areDistinct, sumPowers } from './topk-passes.ts';

/** What the quick check may miss by without asking the slow ones, see sound-topk.ts. */
const NARROWER = 2e-4;

/**
 * The definition of sound labels, one entry after the other in float64.
 * @param tolerance nats, and a share of probability
 */
function isSound(
  { ids, logprobs, logZ }: TopKLabels,
  position: number,
  [start, end]: readonly [number, number],
  { temperatures }: TopKPolicy,
  vocabSize: number,
  tolerance: number,
): boolean {
  const own = [...logprobs.subarray(start, end)];
  const chosen = [...ids.subarray(start, end)];
  if (new Set(chosen).size < chosen.length || chosen.some((id) => id < 0 || id >= vocabSize)) return false;
  if (own.some((logprob, i) => !Number.isFinite(logprob) || logprob > tolerance || logprob > (own[i - 1] ?? Infinity)))
    return false;
  const mass = own.reduce((sum, logprob) => sum + Math.exp(logprob), 0);
  if (mass > 1 + tolerance) return false;
  return temperatures.every((temperature, index) => {
    const value = logZ[position * temperatures.length + index]!;
    if (!Number.isFinite(value) || (temperature === 1 && Math.abs(value) > tolerance)) return false;
    const sum = own.reduce((total, logprob) => total + Math.exp((logprob - own[0]!) / temperature), 0);
    const tail = (vocabSize - own.length) * Math.exp((own.at(-1)! - own[0]!) / temperature);
    const slack = tolerance * Math.max(1, Math.abs(value));
    const [least, most] = [sum, sum + tail].map((all) => own[0]! / temperature + Math.log(all));
    return value >= least! - slack && value <= most! + slack;
  });
}

const shapes = fc.record({
  vocabSize: fc.constantFrom(1, 31, 32, 33, 200, 151_936),
  temperatures: fc.constantFrom([1], [1, 2, 4], [4, 1, 2], [1, 3], [0.5, 1, 8], [1, 1000], [0.25, 0.5, 1, 2, 4, 8, 16]),
  positions: fc.integer({ min: 1, max: 5 }),
  mostEntries: fc.integer({ min: 1, max: 90 }),
  spread: fc.constantFrom(0, 0.01, 1, 6, 30, 90),
  seed: fc.nat(),
});

/** Logits of the k most probable ids and a tail below them, as labels at every temperature. */
function makeLabels(
  random: () => number,
  { vocabSize, temperatures, positions, mostEntries, spread }: typeof shapes extends fc.Arbitrary<infer T> ? T : never,
): TopKLabels {
  const counts = Int32Array.from(
    { length: positions },
    () => 1 + Math.floor(random() * Math.min(mostEntries, vocabSize)),
  );
  const ids: number[] = [];
  const logprobs: number[] = [];
  const logZ: number[] = [];
  for (const count of counts) {
    const chosen = new Set<number>();
    while (chosen.size < count) chosen.add(Math.floor(random() * vocabSize));
    ids.push(...chosen);
    const logits = Float64Array.from({ length: count }, () => -spread * random())
      .sort()
      .reverse();
    const tailLogit = logits.at(-1)! - 3 * random();
    const logSum = (temperature: number) =>
      Math.log(
        logits.reduce((sum, logit) => sum + Math.exp(logit / temperature), 0) +
          (vocabSize - count) * Math.exp(tailLogit / temperature),
      );
    logprobs.push(...Array.from(logits, (logit) => logit - logSum(1)));
    logZ.push(...temperatures.map((temperature) => logSum(temperature) - logSum(1) / temperature));
  }
  return { counts, ids: Int32Array.from(ids), logprobs: Float32Array.from(logprobs), logZ: Float32Array.from(logZ) };
}

function* boundsOf(counts: Int32Array): Generator<readonly [number, number]> {
  let start = 0;
  for (const count of counts) {
    yield [start, start + count];
    start += count;
  }
}

/** One number changed, by much or by about the tolerance. */
function damage(labels: TopKLabels, random: () => number, vocabSize: number): TopKLabels {
  const pick = <T>(choices: readonly T[]) => choices[Math.floor(random() * choices.length)]!;
  const ids = labels.ids.slice();
  const logprobs = labels.logprobs.slice();
  const logZ = labels.logZ.slice();
  const place = (numbers: ArrayLike<number>) => Math.floor(random() * numbers.length);
  const miss = pick([-1, 1]) * TOLERANCE * (0.5 + random());
  const at = place(ids);
  const factor = Math.max(1, Math.abs(logZ[0]!));
  const changes: readonly (() => void)[] = [
    () => {
      ids[at] = pick([-1, vocabSize, 2 ** 31 - 1, -(2 ** 31), ids[place(ids)]!, ids[Math.max(0, at - 1)]!]);
    },
    () => {
      logprobs[at] = pick([NaN, Infinity, -Infinity, -1e30, 0.01, 1, -0, logprobs[place(logprobs)]!]);
    },
    () => {
      logprobs[at]! += miss;
    },
    () => {
      logZ[place(logZ)] = pick([NaN, Infinity, -Infinity, 0, 1e30, -1e30, 40]);
    },
    () => {
      logZ[place(logZ)]! += miss;
    },
    () => logZ.set(logZ.map((value) => value + miss * factor)),
    () => logprobs.set(logprobs.map((value) => value + miss)),
    () => {
      logprobs.set(logprobs.map((value) => value + 2 * miss));
      logZ.set(logZ.map((value) => value + miss));
    },
  ];
  pick(changes)();
  return { ...labels, ids, logprobs, logZ };
}

test('what the quick check lets pass the definition lets pass, and what is well within it the quick check does', () => {
  let passed = 0;
  let refused = 0;
  fc.assert(
    fc.property(shapes, fc.boolean(), (shape, isDamaged) => {
      const { vocabSize, temperatures, seed } = shape;
      const random = randomUniforms(seed);
      const policy: TopKPolicy = { k: vocabSize, temperatures };
      const made = makeLabels(random, shape);
      const labels = isDamaged ? damage(made, random, vocabSize) : made;
      const check = openSoundCheck(policy, vocabSize)!;
      let position = 0;
      for (const [start, end] of boundsOf(labels.counts)) {
        const isPassed = check(labels, position, start, end);
        const isSoundWithin = (tolerance: number) =>
          isSound(labels, position, [start, end], policy, vocabSize, tolerance);
        const what = JSON.stringify({ shape, position });
        if (isPassed) assert.ok(isSoundWithin(TOLERANCE), `passed, but not sound: ${what}`);
        const distance = labels.logprobs[start]! - labels.logprobs[end - 1]!;
        const isNear = distance < 128 * Math.min(...temperatures);
        if (!isPassed && isNear) assert.ok(!isSoundWithin(TOLERANCE - NARROWER), `sound, but not passed: ${what}`);
        if (isPassed) passed += 1;
        else refused += 1;
        position += 1;
      }
    }),
    { numRuns: 8000 },
  );
  assert.ok(passed > 2000 && refused > 500, `${passed} passed, ${refused} were refused`);
});

test('policies of which entries it may not judge the quick check leaves alone', () => {
  const sound: TopKPolicy = { k: 4, temperatures: [1, 2] };
  const others: readonly Partial<TopKPolicy>[] = [
    { topP: 0.9 },
    { pinnedIds: [1] },
    { keepTarget: true },
    { packing: 'zstd', logprobDtype: 'float16' },
    { temperatures: [2] },
  ];
  assert.notEqual(openSoundCheck(sound, 10), undefined);
  for (const other of others) assert.equal(openSoundCheck({ ...sound, ...other }, 10), undefined);
});

/** Even labels of k of vocabSize ids, the rest as probable as the last. */
function evenLabels(positions: number, k: number, vocabSize: number, firstId: number): TopKLabels {
  return {
    counts: new Int32Array(positions).fill(k),
    ids: Int32Array.from({ length: positions * k }, (_, i) => (firstId + i) % vocabSize),
    logprobs: new Float32Array(positions * k).fill(-Math.log(vocabSize)),
    logZ: new Float32Array(positions),
  };
}

test('rows longer than what is looked at together, and rows in turns, are checked each by its own entries', () => {
  const [positions, k, vocabSize] = [700, 97, 5000];
  const policy: TopKPolicy = { k, temperatures: [1] };
  const good = evenLabels(positions, k, vocabSize, 0);
  const badAt = [0, 337, 338, 339, 699];
  const bad = evenLabels(positions, k, vocabSize, 7);
  for (const position of badAt) bad.ids[position * k + 96] = bad.ids[position * k]!;
  const [checkGood, checkBad] = [openSoundCheck(policy, vocabSize)!, openSoundCheck(policy, vocabSize)!];
  for (let position = 0; position < positions; position++) {
    const bounds = [position * k, position * k + k] as const;
    assert.ok(checkGood(good, position, ...bounds), `position ${position} is sound`);
    assert.equal(checkBad(bad, position, ...bounds), !badAt.includes(position), `position ${position} of the other`);
  }
  // Another vocabulary in between has other memory.
  assert.ok(openSoundCheck(policy, 6000)!(evenLabels(1, k, 6000, 0), 0, 0, k));
  assert.ok(checkGood(good, 5, 5 * k, 6 * k));
});

test('the sums of powers are those of float64, at every count and however far entries are apart', () => {
  const sums = new Float64Array(3);
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 4096 }),
      fc.nat({ max: 11 }),
      fc.constantFrom(0, 1, 20, 130, 4000),
      fc.constantFrom(0.25, 1, 4, 1000),
      fc.nat(),
      (count, before, spread, temperature, seed) => {
        const random = randomUniforms(seed);
        // What stands before and after must not matter.
        const logprobs = Float32Array.from({ length: before + count + 5 }, () =>
          random() < 0.5 ? NaN : 1000 * random(),
        );
        const own = Float32Array.from({ length: count }, () => -spread * random())
          .sort()
          .reverse();
        logprobs.set(own, before);
        const bounds = [before, before + count] as const;
        assert.ok(sumPowers(logprobs, bounds, temperature, sums), 'they descend');
        for (const [i, factor] of [1, 2, 4].entries()) {
          const expected = own.reduce((sum, one) => sum + Math.exp(((one - own[0]!) * factor) / temperature), 0);
          const error = Math.abs(sums[i]! / expected - 1);
          assert.ok(error <= 1e-7, `sum ${i} is off by ${error}`);
        }
        if (count === 1) return;
        const swapped = logprobs.slice();
        const at = before + 1 + Math.floor(random() * (count - 1));
        for (const [what, value] of [
          ['a larger one', swapped[at - 1]! + 0.5],
          ['no number', Number.NaN],
        ] as const) {
          swapped[at] = value;
          assert.ok(!sumPowers(swapped, bounds, temperature, sums), `${what} at ${at}`);
        }
      },
    ),
    { numRuns: 500 },
  );
});

test('ids are distinct and of the vocabulary, or found not to be', () => {
  for (const vocabSize of [1, 31, 32, 33, 127, 128, 129, 152_064]) {
    fc.assert(
      fc.property(
        fc.array(
          fc.oneof(
            fc.nat({ max: Math.min(vocabSize + 1, 300) }),
            fc.integer({ min: -3, max: vocabSize + 3 }),
            fc.integer(),
          ),
          {
            maxLength: 60,
          },
        ),
        fc.nat({ max: 5 }),
        (list, before) => {
          const ids = Int32Array.from([...Array(before).fill(0), ...list, 0, 0]);
          const expected = new Set(list).size === list.length && list.every((id) => id >= 0 && id < vocabSize);
          assert.equal(areDistinct(ids, before, before + list.length, vocabSize), expected, `${list} of ${vocabSize}`);
          // Nothing of it is remembered.
          assert.equal(areDistinct(ids, before, before + list.length, vocabSize), expected, 'again');
        },
      ),
      { numRuns: 300 },
    );
  }
});
