import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { countParameters, openModelWeights, readModelConfig } from '@stillhouse/checkpoint';
import { isStillhouseError } from '@stillhouse/errors';
import { resolveSettings } from '@stillhouse/settings';
import { makeTemporaryFolder } from '@stillhouse/testing';
import { test } from 'vitest';
import { INIT_SETTINGS, initStudent } from './init-student.ts';

const LIKE = new URL('../../../../test/golden/qwen2-tiny-untied', import.meta.url).pathname;
const settings = (given: Record<string, unknown>) => resolveSettings(INIT_SETTINGS, { like: LIKE, ...given });

test('a new student has the sizes asked for, and its seed decides its bytes', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const sizes = { layers: 3, hidden: 48, heads: 6, kvHeads: 3, intermediate: 72 };
  const made = await Promise.all(
    ['a', 'b'].map((name) => initStudent(settings({ ...sizes, seed: 5, out: join(folder, name) }))),
  );
  const { config, parameterCount } = made[0]!;
  assert.deepEqual(
    [
      config.layerCount,
      config.hiddenSize,
      config.headCount,
      config.kvHeadCount,
      config.headDim,
      config.intermediateSize,
    ],
    [3, 48, 6, 3, 8, 72],
  );
  assert.equal(parameterCount, countParameters(await readModelConfig(join(folder, 'a'))));
  const weights = (name: string) => readFile(join(folder, name, 'model.safetensors'));
  assert.deepEqual(await weights('a'), await weights('b'));
  await initStudent(settings({ ...sizes, seed: 6, out: join(folder, 'c') }));
  assert.notDeepEqual(await weights('a'), await weights('c'));
});

test('weights are normal with the range of the configuration, norms one, biases zero', async (t) => {
  const out = join(await makeTemporaryFolder(t), 'student');
  await initStudent(settings({ out, seed: 1 }));
  const source = await openModelWeights(out);
  const embedding = await source.embedding.read('float32');
  const mean = embedding.reduce((sum, one) => sum + one, 0) / embedding.length;
  const deviation = Math.sqrt(embedding.reduce((sum, one) => sum + (one - mean) ** 2, 0) / embedding.length);
  assert.ok(Math.abs(mean) < 5e-4 && Math.abs(deviation - 0.02) < 5e-4, `${mean}, ${deviation}`);
  assert.ok((await source.norm.read('float32')).every((one) => one === 1));
  assert.ok((await source.layers[0]!['self_attn.q_proj.bias']!.read('float32')).every((one) => one === 0));
  await source.close();
});

test('a scale is met within a fifth', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const whole = countParameters(await readModelConfig(LIKE));
  for (const scale of [0.2, 0.5, 1, 2]) {
    const { parameterCount } = await initStudent(settings({ scale, out: join(folder, String(scale)) }));
    assert.ok(Math.abs(parameterCount / (whole * scale) - 1) < 0.2, `${scale}: ${parameterCount} of ${whole}`);
  }
});

test('what cannot be is refused', async (t) => {
  const out = join(await makeTemporaryFolder(t), 'student');
  const refused = (given: Record<string, unknown>, code: string) =>
    assert.rejects(initStudent(settings(given)), (error) => isStillhouseError(error, code));
  await refused({}, 'SETTING_MISSING');
  await refused({ out, hidden: 50, heads: 4 }, 'STUDENT_SHAPE_INVALID');
  await initStudent(settings({ out }));
  await refused({ out }, 'RUN_EXISTS');
});
