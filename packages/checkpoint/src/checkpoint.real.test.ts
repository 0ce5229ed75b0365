import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'vitest';
import { openWeightFiles } from './hugging-face/weight-files.ts';
import { countParameters, openModelWeights } from './index.ts';

test('real model folders hold what their configs ask for', async (t) => {
  const models = process.env.STILLHOUSE_MODELS;
  if (models === undefined) return t.skip('set STILLHOUSE_MODELS to a folder of model folders to run this');
  // A folder may hold a tokenizer alone.
  const folders = (await readdir(models, { withFileTypes: true })).filter(
    (entry) => entry.isDirectory() && existsSync(join(models, entry.name, 'config.json')),
  );
  assert.ok(folders.length > 0, `${models} has no model folders`);
  for (const { name } of folders) {
    const folder = join(models, name);
    const weights = await openModelWeights(folder);
    await weights.norm.read('float32');
    await weights.close();
    const { config } = weights;
    const source = await openWeightFiles(folder);
    const bytes = [...source.tensors.values()].reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
    await source.close();
    assert.ok(bytes >= 2 * countParameters(config), `${name} holds ${bytes} bytes`);
    console.log(`${name}: ${config.architecture}, ${countParameters(config)} parameters`);
  }
});
