import assert from 'node:assert/strict';
import { openEngine } from '@stillhouse/runtime';
import { afterAll, test } from 'vitest';
import { openRowTiles, tileBoundaries } from './row-tiles.ts';

const engine = await openEngine({ threads: 1 });
afterAll(() => engine.close());

test('tiles are about equal, hold 512 tokens at most, and a longer row alone', () => {
  assert.deepEqual(tileBoundaries(8, 256, 512), [0, 2, 4, 6, 8]);
  assert.deepEqual(tileBoundaries(5, 200, 512), [0, 1, 3, 5]);
  assert.deepEqual(tileBoundaries(3, 100, 512), [0, 3]);
  assert.deepEqual(tileBoundaries(2, 2048, 512), [0, 1, 2]);
});

test('a tile is its rows of tensors by row and by token; one tile is the tensors themselves', async () => {
  const [rows, length] = [3, 300];
  const byToken = engine.upload(
    Float32Array.from({ length: rows * length * 2 }, (_, i) => i),
    'float32',
    [rows * length, 2],
  );
  const byRow = engine.upload(Float32Array.of(7, 8, 9), 'float32', [rows, 1]);
  const tiles = openRowTiles(engine, rows, length, 512);
  assert.equal(tiles.count, 3);
  const { x, y } = tiles.cut({ x: byToken, y: byRow }, 1) as { x: typeof byToken; y: typeof byRow };
  assert.deepEqual(
    [x.shape, y.shape],
    [
      [length, 2],
      [1, 1],
    ],
  );
  assert.equal(tiles.cut({ x: byToken }, 1).x, x);
  assert.equal((await engine.download(x))[0], length * 2);
  assert.deepEqual([...(await engine.download(y))], [8]);
  tiles.close();
  await assert.rejects(engine.download(x), { code: 'TENSOR_FREED' });
  const whole = openRowTiles(engine, 2, 100, 512);
  assert.equal(whole.count, 1);
  assert.equal(whole.cut({ byRow }, 0).byRow, byRow);
});
