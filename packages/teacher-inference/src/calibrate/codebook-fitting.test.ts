import assert from 'node:assert/strict';
import { measureCodedBytes } from '@stillhouse/teacher-cache';
import { randomUniforms } from '@stillhouse/testing';
import { test } from 'vitest';
import { fitCodebook, fitTransform, type MultiplySquare } from './codebook-fitting.ts';

const WIDTH = 12;

const multiply: MultiplySquare = async (a, b, transA) => {
  const out = new Float32Array(WIDTH * WIDTH);
  for (let row = 0; row < WIDTH; row++)
    for (let column = 0; column < WIDTH; column++)
      for (let k = 0; k < WIDTH; k++)
        out[row * WIDTH + column]! += a[transA ? k * WIDTH + row : row * WIDTH + k]! * b[k * WIDTH + column]!;
  return out;
};

/** Correlated states, and a metric in which the first channels count a thousand times more than the last. */
function makeStates(positions: number, seed: number) {
  const random = randomUniforms(seed);
  const gaussian = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  const states = new Float32Array(positions * WIDTH);
  for (let position = 0; position < positions; position++) {
    const shared = gaussian();
    for (let c = 0; c < WIDTH; c++) states[position * WIDTH + c] = 3 + shared * (1 + c / 4) + 0.3 * gaussian();
  }
  const metric = new Float64Array(WIDTH * WIDTH);
  for (let c = 0; c < WIDTH; c++) metric[c * WIDTH + c] = c < 6 ? 1000 : 1;
  return { states, metric };
}

function momentsOf(states: Float32Array) {
  const positions = states.length / WIDTH;
  const mean = new Float32Array(WIDTH);
  for (let i = 0; i < states.length; i++) mean[i % WIDTH]! += states[i]! / positions;
  const covariance = new Float64Array(WIDTH * WIDTH);
  for (let position = 0; position < positions; position++)
    for (let a = 0; a < WIDTH; a++)
      for (let b = 0; b < WIDTH; b++)
        covariance[a * WIDTH + b]! +=
          ((states[position * WIDTH + a]! - mean[a]!) * (states[position * WIDTH + b]! - mean[b]!)) / positions;
  return { mean, covariance, positions, width: WIDTH };
}

const coordinatesOf = (states: Float32Array, mean: Float32Array, encode: Float32Array, rank: number) =>
  Float32Array.from({ length: (states.length / WIDTH) * rank }, (_, i) => {
    const [position, c] = [Math.floor(i / rank), i % rank];
    let sum = 0;
    for (let channel = 0; channel < WIDTH; channel++)
      sum += (states[position * WIDTH + channel]! - mean[channel]!) * encode[channel * rank + c]!;
    return sum;
  });

test('coordinates are uncorrelated, orthonormal in the metric, and give the states back', async () => {
  const { states, metric } = makeStates(4000, 1);
  const transform = await fitTransform({ ...momentsOf(states), metric }, multiply);
  const coordinates = coordinatesOf(states, transform.mean, transform.encode, WIDTH);
  for (let a = 0; a < WIDTH; a++) {
    for (let b = 0; b < WIDTH; b++) {
      let product = 0;
      for (let n = 0; n < 4000; n++) product += (coordinates[n * WIDTH + a]! * coordinates[n * WIDTH + b]!) / 4000;
      const scale = transform.deviations[a]! * transform.deviations[b]!;
      // A weak coordinate's deviation is raised by what a sample leaves open.
      const [low, high] = a === b ? [a === 0 ? 0.98 : 0.5, 1.02] : [-0.02, 0.02];
      assert.ok(product / scale > low && product / scale < high, `coordinates ${a} and ${b}: ${product / scale}`);
      let inMetric = 0;
      for (let c = 0; c < WIDTH; c++)
        inMetric += transform.decode[a * WIDTH + c]! * metric[c * WIDTH + c]! * transform.decode[b * WIDTH + c]!;
      assert.ok(Math.abs(inMetric - (a === b ? 1 : 0)) < 0.05, `rows ${a} and ${b} of decode: ${inMetric}`);
    }
  }
  for (let c = 0; c < WIDTH; c++) {
    let state = transform.mean[c]!;
    for (let k = 0; k < WIDTH; k++) state += coordinates[k]! * transform.decode[k * WIDTH + c]!;
    assert.ok(Math.abs(state - states[c]!) < 1e-4);
  }
});

test('the step meets the bytes asked for, on the sample and on other states, and spends them where the metric is', async () => {
  const { states, metric } = makeStates(4000, 1);
  const transform = await fitTransform({ ...momentsOf(states), metric }, multiply);
  const coordinates = coordinatesOf(states, transform.mean, transform.encode, WIDTH);
  const other = makeStates(2000, 2).states;
  let former = Infinity;
  for (const bytes of [2, 5, 10]) {
    const codebook = fitCodebook(transform, coordinates, bytes);
    const { rank } = codebook;
    const codes = Int16Array.from(coordinatesOf(other, codebook.mean, codebook.encode, rank), Math.round);
    const taken = measureCodedBytes(codes, codebook.coder) / 2000;
    assert.ok(Math.abs(taken / bytes - 1) < 0.03, `${taken} bytes for ${bytes}`);
    const errors = [0, 0];
    for (let n = 0; n < 2000; n++) {
      for (let c = 0; c < WIDTH; c++) {
        let state = codebook.mean[c]!;
        for (let k = 0; k < rank; k++) state += codes[n * rank + k]! * codebook.decode[k * WIDTH + c]!;
        errors[c < 6 ? 0 : 1]! += (state - other[n * WIDTH + c]!) ** 2;
      }
    }
    assert.ok(errors[0]! < former, `${bytes} bytes: ${errors[0]}`);
    assert.ok(errors[0]! < errors[1]!, 'what counts is not nearer than what does not');
    former = errors[0]!;
  }
});

test('a layer without a metric, and one without a single position, have a codebook too', async () => {
  const { states } = makeStates(500, 3);
  const plain = await fitTransform(momentsOf(states), multiply);
  const codebook = fitCodebook(plain, coordinatesOf(states, plain.mean, plain.encode, WIDTH), 8);
  assert.ok(codebook.rank >= 1);
  const nothing = {
    width: WIDTH,
    positions: 0,
    mean: new Float32Array(WIDTH),
    covariance: new Float64Array(WIDTH ** 2),
  };
  const empty = fitCodebook(await fitTransform(nothing, multiply), new Float32Array(), 8);
  assert.ok(empty.rank >= 1 && empty.decode.every(Number.isFinite) && empty.encode.every(Number.isFinite));
});
