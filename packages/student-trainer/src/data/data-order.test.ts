import assert from 'node:assert/strict';
import { shuffledOrder } from '@stillhouse/seeded-random';
import fc from 'fast-check';
import { test } from 'vitest';
import { learningRateAt } from '../optimiser/learning-rate.ts';
import { countSteps, type OrderedSource, openDataOrder, type SourceRow, sumLengths } from './data-order.ts';

const lengths = fc.array(fc.integer({ min: 1, max: 50 }), { minLength: 1, maxLength: 40 });
const sources: fc.Arbitrary<readonly OrderedSource[]> = fc.array(
  fc.record({ lengths, weight: fc.double({ min: 0.05, max: 20, noNaN: true }) }),
  { minLength: 1, maxLength: 4 },
);

/** The rows of steps until there are at least `count`, steps of the sizes that are given, over and over. */
function takeRows(given: readonly OrderedSource[], seed: number, count: number, stepTokens: readonly number[]) {
  const order = openDataOrder(given, seed);
  const rows: SourceRow[] = [];
  let position = order.start;
  for (let step = 0; rows.length < count; step++) {
    const taken = order.take(position, stepTokens[step % stepTokens.length]!);
    assert.ok(
      taken.rows.reduce((sum, { source, row }) => sum + given[source]!.lengths[row]!, 0) >=
        stepTokens[step % stepTokens.length]!,
    );
    rows.push(...taken.rows);
    position = taken.next;
  }
  return { rows: rows.slice(0, count), position };
}

test('steps one after the other use every row once an epoch, whatever the budget', () => {
  fc.assert(
    fc.property(lengths, fc.integer({ min: 1, max: 120 }), (rowLengths, batchTokens) => {
      const count = 2 * rowLengths.length;
      const { rows } = takeRows([{ lengths: rowLengths, weight: 3 }], 5, count, [batchTokens]);
      assert.deepEqual(
        rows.map(({ row }) => row),
        [...shuffledOrder(rowLengths.length, 5, 0), ...shuffledOrder(rowLengths.length, 5, 1)],
      );
    }),
  );
});

test('the rows of a mixture follow from seed and weights, however many tokens a step has', () => {
  const sizes = fc.array(fc.integer({ min: 1, max: 300 }), { minLength: 1, maxLength: 5 });
  fc.assert(
    fc.property(sources, fc.nat(), sizes, sizes, (given, seed, some, other) => {
      const rows = takeRows(given, seed, 150, some).rows;
      assert.deepEqual(takeRows(given, seed, 150, other).rows, rows);
      // Each cache by itself goes through its own permutations.
      given.forEach(({ lengths: own }, source) => {
        const seen = rows.filter((one) => one.source === source).map(({ row }) => row);
        const wanted = Array.from({ length: Math.ceil(seen.length / own.length) }, (_, epoch) => [
          ...shuffledOrder(own.length, seed, epoch, source),
        ]).flat();
        assert.deepEqual(seen, wanted.slice(0, seen.length));
      });
    }),
  );
});

test('a position says all there is to go on from', () => {
  fc.assert(
    fc.property(sources, fc.nat(), fc.integer({ min: 1, max: 200 }), (given, seed, batchTokens) => {
      const straight = openDataOrder(given, seed);
      let position = straight.start;
      for (let step = 0; step < 8; step++) {
        const { rows, next } = straight.take(position, batchTokens);
        const saved = JSON.parse(JSON.stringify(position)) as typeof position;
        assert.deepEqual(openDataOrder(given, seed).take(saved, batchTokens), { rows, next });
        position = next;
      }
    }),
  );
});

test('at every row the shares in tokens are the weights but for the longest row', () => {
  fc.assert(
    fc.property(sources, fc.nat(), (given, seed) => {
      const tokens = given.map(() => 0);
      for (const { source, row } of takeRows(given, seed, 300, [40]).rows) {
        tokens[source]! += given[source]!.lengths[row]!;
        const served = given.map(({ weight }, i) => tokens[i]! / weight);
        const bounds = given.map(({ lengths: own, weight }) => Math.max(...Array.from(own)) / weight);
        served.forEach((one, i) => {
          served.forEach((other, j) => {
            assert.ok(one - other <= bounds[i]! + 1e-9 * one, `${i} against ${j}: ${one} and ${other}`);
          });
        });
      }
    }),
  );
  const two = [50, 900].map((count, i) => ({ lengths: new Int32Array(count).fill(10), weight: [2, 1][i]! }));
  const { rows, position } = takeRows(two, 1, 900, [100]);
  assert.equal(rows.filter(({ source }) => source === 0).length, 600);
  assert.deepEqual(openDataOrder(two, 1).countEpochs(position), [12, 1 / 3]);
});

test('weights that are the caches own tokens bring every row once an epoch', () => {
  fc.assert(
    fc.property(fc.array(lengths, { minLength: 1, maxLength: 4 }), fc.nat(), (all, seed) => {
      const given = all.map((own) => ({ lengths: own, weight: sumLengths(own) }));
      const count = all.flat().length;
      const { rows } = takeRows(given, seed, count, [64]);
      assert.equal(new Set(rows.map(({ source, row }) => `${source} ${row}`)).size, count);
    }),
  );
});

test('steps for some epochs are the fewest that see so many tokens', () => {
  fc.assert(
    fc.property(
      sources,
      fc.nat(),
      fc.integer({ min: 1, max: 150 }),
      fc.constantFrom(0.5, 1, 2),
      (given, seed, batchTokens, epochs) => {
        const wanted = epochs * given.reduce((sum, { lengths: own }) => sum + sumLengths(own), 0);
        const steps = countSteps(given, seed, batchTokens, epochs);
        const order = openDataOrder(given, seed);
        let [position, tokens, before] = [order.start, 0, 0];
        for (let step = 0; step < steps; step++) {
          const { rows, next } = order.take(position, batchTokens);
          before = tokens;
          tokens += rows.reduce((sum, { source, row }) => sum + given[source]!.lengths[row]!, 0);
          position = next;
        }
        assert.ok(tokens >= wanted && before < wanted);
      },
    ),
  );
});

test('the rate warms up linearly, peaks, and ends at its share', () => {
  const schedule = { lr: 1, warmupSteps: 4, finalLrRatio: 0.1, steps: 24 };
  assert.deepEqual(
    [1, 2, 3, 4, 5].map((step) => learningRateAt(step, schedule)),
    [0.25, 0.5, 0.75, 1, 1],
  );
  assert.ok(Math.abs(learningRateAt(24, schedule) - 0.1) < 1e-12);
  const rates = Array.from({ length: 20 }, (_, i) => learningRateAt(5 + i, schedule));
  assert.ok(rates.every((rate, i) => i === 0 || rate < rates[i - 1]!));
  assert.equal(learningRateAt(1, { lr: 2, warmupSteps: 0, finalLrRatio: 0.1, steps: 1 }), 2);
});
