import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'vitest';
import { OWN_MODEL_NAMES, readOwnModel } from './own-models.ts';

test('the models that the runtime runs itself are those of test/runtime', () => {
  for (const name of OWN_MODEL_NAMES) {
    const file = readFileSync(new URL(`../../../test/runtime/${name}.onnx`, import.meta.url));
    assert.deepEqual(readOwnModel(name), new Uint8Array(file), name);
  }
});
