import assert from 'node:assert/strict';
import { test } from 'vitest';
import { isShapeInput, shapeInputDims, shapeInputName } from './shape-input.ts';

test('the name of a shape input says its dimensions', () => {
  const name = shapeInputName(['2*B*T', 4, 'D']);
  assert.deepEqual(shapeInputDims(name), ['2*B*T', '4', 'D']);
  assert.ok(isShapeInput(name));
  assert.ok(!isShapeInput('shape'));
});
