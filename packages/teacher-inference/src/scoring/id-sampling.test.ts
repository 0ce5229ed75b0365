import assert from 'node:assert/strict';
import { openUniformNumbers } from '@stillhouse/seeded-random';
import { test } from 'vitest';
import { BLOCK_IDS } from './distribution-graph.ts';
import { countDraws, drawBlocks } from './id-sampling.ts';

/** Draws by weights [positions, blocks · 128] with these uniform numbers. */
function draw(weights: Float32Array, blockCount: number, uniform: Float64Array) {
  const positions = weights.length / (blockCount * BLOCK_IDS);
  const sums = Float32Array.from({ length: positions * blockCount }, (_, block) =>
    weights.subarray(block * BLOCK_IDS, (block + 1) * BLOCK_IDS).reduce((sum, weight) => sum + weight, 0),
  );
  const drawn = drawBlocks(sums, blockCount, uniform);
  const rows = Float32Array.from(
    drawn.wanted.flatMap((block) => [...weights.subarray(block * BLOCK_IDS, (block + 1) * BLOCK_IDS)]),
  );
  return countDraws(drawn, rows, { positions, draws: uniform.length / positions, blockCount });
}

test('a uniform number picks the id in whose share it falls; ids without weight are never drawn', () => {
  const weights = new Float32Array(3 * BLOCK_IDS);
  weights[5] = 1;
  weights[130] = 2;
  weights[131] = 1;
  const pick = (number: number) => draw(weights, 3, Float64Array.of(number)).ids[0];
  const [below, above] = [1 - 2 ** -53, 2 ** -50];
  assert.deepEqual([0, 0.25 - above, 0.25, 0.75 - above, 0.75, below].map(pick), [5, 5, 130, 130, 131, 131]);
  const labels = draw(weights, 3, Float64Array.of(0.9, 0.3, 0.1, 0.5, 0.99));
  assert.deepEqual(labels, {
    counts: Int32Array.of(3),
    ids: Int32Array.of(130, 131, 5),
    draws: Uint16Array.of(2, 2, 1),
  });
});

test('extreme weights: one id alone, next to nothing beside everything, the last id of all', () => {
  const weights = new Float32Array(2 * BLOCK_IDS);
  weights[255] = 1;
  assert.deepEqual(draw(weights, 2, Float64Array.of(0, 0.5, 1 - 2 ** -53)).ids, Int32Array.of(255));
  weights[0] = 1e-38;
  assert.deepEqual(draw(weights, 2, Float64Array.of(0, 0.5)).ids, Int32Array.of(0, 255));
  weights.fill(1);
  const count = 2 * BLOCK_IDS;
  const all = draw(
    weights,
    2,
    Float64Array.from({ length: count }, (_, i) => (i + 0.5) / count),
  );
  assert.deepEqual(
    all.ids,
    Int32Array.from({ length: count }, (_, id) => id),
  );
});

test('draws follow the exact distribution (chi-square)', () => {
  // Weights over ten octaves, in an order that mixes them.
  const blockCount = 4;
  const size = blockCount * BLOCK_IDS;
  const row = Float32Array.from({ length: size }, (_, id) => 2 ** (((id * 37) % 41) / 4));
  const total = row.reduce((sum, weight) => sum + weight, 0);
  const positions = 400;
  const draws = 500;
  const weights = new Float32Array(positions * size);
  const uniform = new Float64Array(positions * draws);
  const numbers = openUniformNumbers(3, 'chi-square');
  for (let position = 0; position < positions; position++) {
    weights.set(row, position * size);
    numbers(position, uniform.subarray(position * draws, (position + 1) * draws));
  }
  const labels = draw(weights, blockCount, uniform);
  const observed = new Float64Array(size);
  for (const [i, id] of labels.ids.entries()) observed[id]! += labels.draws[i]!;
  const chiSquare = observed.reduce((sum, count, id) => {
    const expected = (positions * draws * row[id]!) / total;
    return sum + (count - expected) ** 2 / expected;
  }, 0);
  // 511 degrees of freedom, standard deviation 32: within four of them.
  assert.ok(Math.abs(chiSquare - (size - 1)) < 4 * Math.sqrt(2 * (size - 1)), `chi-square ${chiSquare}`);
});
