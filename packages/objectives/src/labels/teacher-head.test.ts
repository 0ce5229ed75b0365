import assert from 'node:assert/strict';
import { openEngine } from '@stillhouse/runtime';
import {
  type CacheDescription,
  decodeStates,
  fitCoordinateCoder,
  type HiddenCodebook,
  type LabelledRow,
} from '@stillhouse/teacher-cache';
import { expectClose, randomNormals } from '@stillhouse/testing';
import { afterAll, test } from 'vitest';
import { collectLabels } from './label-arrays.ts';
import { describeFullLabels, uploadTeacherHead } from './teacher-head.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

const [V, WIDTH, RANK] = [9000, 12, 7];
const normal = randomNormals(5);
const normals = (length: number) => Float32Array.from({ length }, normal);

const codebook: HiddenCodebook = {
  width: WIDTH,
  rank: RANK,
  mean: normals(WIDTH),
  encode: normals(WIDTH * RANK),
  decode: normals(RANK * WIDTH),
  coder: fitCoordinateCoder(new Int16Array(RANK), RANK),
};
const matrix = normals(V * WIDTH);
const cache = {
  description: { teacher: { vocabSize: V, hiddenSize: WIDTH } } as CacheDescription,
  readOutputMatrix: async () => matrix.slice(),
};

test('codes meet the folded matrix as their states meet the whole one; rows that take no part are left out', async () => {
  const vocabSize = V - 5;
  const labels = describeFullLabels(cache.description, codebook);
  assert.deepEqual(labels, { kind: 'full', teacherHidden: RANK + 1, isCoded: true });
  const head = await uploadTeacherHead(engine, cache, codebook, vocabSize);
  assert.deepEqual(head.shape, [vocabSize, RANK + 1]);
  const folded = (await engine.download(head)) as Float32Array;

  const codes = Int16Array.from({ length: 3 * RANK }, (_, i) => ((i * 5) % 11) - 5);
  const row: LabelledRow = {
    row: { id: 'a', inputIds: new Int32Array(4), lossMask: Uint8Array.of(0, 1, 0, 1) },
    positions: Int32Array.of(0, 1, 2),
    hidden: new Map([['final', { layer: 'final', dtype: 'coded', width: RANK, values: codes }]]),
  };
  const { teacher, count } = collectLabels([row], {
    objective: { labels, divergence: { kind: 'forward-kl' } },
    temperature: 1,
    temperatures: [],
    hiddenScale: codebook,
    vocabSize,
    float: 'float32',
  });
  assert.equal(count, 2);
  const { data, width } = teacher.get('teacher.hidden')!;
  assert.equal(width, RANK + 1);
  const states = decodeStates(codes, codebook);
  for (const [n, position] of [0, 2].entries()) {
    const logits = (hidden: ArrayLike<number>, start: number, weights: Float32Array, columns: number) =>
      Array.from({ length: vocabSize }, (_, id) => {
        let sum = 0;
        for (let c = 0; c < columns; c++) sum += Number(hidden[start + c]) * weights[id * columns + c]!;
        return sum;
      });
    expectClose(
      logits(data as Float32Array, n * (RANK + 1), folded, RANK + 1),
      logits(states, position * WIDTH, matrix, WIDTH),
      { absolute: 1e-3, where: `position ${position}` },
    );
  }
});

test('other states keep the matrix as it is', async () => {
  assert.deepEqual(describeFullLabels(cache.description, undefined), { kind: 'full', teacherHidden: WIDTH });
  const head = await uploadTeacherHead(engine, cache, new Float32Array(WIDTH).fill(1), V - 5);
  assert.deepEqual(await engine.download(head), matrix.subarray(0, (V - 5) * WIDTH));
});
