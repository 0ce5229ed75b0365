import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  describeParameters,
  digestModel,
  openModelWeights,
  parseModelConfig,
  readModelConfig,
  writeModelFolder,
} from '@stillhouse/checkpoint';
import { computeFinalStates } from '@stillhouse/model-runner';
import { openEngine } from '@stillhouse/runtime';
import { resolveSettings } from '@stillhouse/settings';
import { labelPositions, openCacheWriter, quantiseHiddenGroups } from '@stillhouse/teacher-cache';
import { makeTemporaryFolder } from '@stillhouse/testing';
import { openTokenizer } from '@stillhouse/tokenizer';
import { test } from 'vitest';
import { measureCacheQuality, QUALITY_SETTINGS } from '../index.ts';

const TEXTS = [
  'The capital of France is Paris, and the river that runs through it is the Seine. It has done so for a long time.',
  'To add two fractions, bring both to a common denominator, add the numerators, and reduce what you get.',
];

test('SmolLM2-135M: int8 states against the model itself, for a student of fewer layers', async (t) => {
  const models = process.env.STILLHOUSE_MODELS;
  if (models === undefined) return t.skip('set STILLHOUSE_MODELS to a folder of model folders to run this');
  const teacher = join(models, 'smollm2-135m');
  const folder = await makeTemporaryFolder(t);
  const config = await readModelConfig(teacher);
  const { vocabSize, hiddenSize, layerCount } = config;
  const tokenizer = await openTokenizer(teacher);
  const rows = TEXTS.map((text, index) => {
    const inputIds = Int32Array.from(tokenizer.encode(text));
    return { id: `row-${index}`, inputIds, lossMask: Uint8Array.from(inputIds, (_, token) => Number(token > 0)) };
  });
  const weights = await openModelWeights(teacher, config);
  t.onTestFinished(() => weights.close());
  const engine = await openEngine();
  t.onTestFinished(() => engine.close());
  const requests = rows.map(({ inputIds, lossMask }) => ({
    inputIds,
    positions: labelPositions(lossMask, 'response'),
  }));
  const states = (await computeFinalStates(engine, weights, requests, 'float32')) as Float32Array;
  const { weightsSha256, configSha256 } = await digestModel(teacher);
  const cache = join(folder, 'cache');
  const writer = await openCacheWriter(
    cache,
    {
      teacher: {
        name: 'smollm2',
        architecture: 'llama',
        kind: 'weights',
        weightsSha256,
        configSha256,
        hiddenSize,
        layerCount,
        vocabSize,
      },
      tokenizer: null,
      data: { sha256: '0'.repeat(64), name: 'texts', rowCount: rows.length },
      maxLength: null,
      limit: null,
      labels: { topk: null, hidden: { layers: ['final'], dtype: 'int8-groups' }, head: true },
      positions: 'response',
      rowsPerShard: rows.length,
      generator: { name: 'test', version: '1' },
    },
    { totalRows: rows.length },
  );
  const head = await weights.head.read('float32');
  await writer.putOutputMatrix({
    dtype: 'float32',
    rows: vocabSize,
    columns: hiddenSize,
    chunks: [new Uint8Array(head.buffer, head.byteOffset, head.byteLength)],
  });
  let start = 0;
  await writer.writeShard(
    0,
    requests.map(({ positions }, index) => {
      const end = start + positions.length * hiddenSize;
      const hidden = quantiseHiddenGroups('final', states.slice(start, end), hiddenSize);
      start = end;
      return { row: rows[index]!, positions, hidden: new Map([['final', hidden]]) };
    }),
  );
  await writer.finish();
  await writer.close();

  // A student that knows something: all but the last layers, in a folder of its own.
  const student = join(folder, 'student');
  const json = JSON.parse(await readFile(join(teacher, 'config.json'), 'utf8')) as Record<string, unknown>;
  const shorter = { ...json, num_hidden_layers: layerCount - 4 };
  await writeModelFolder({
    out: student,
    config: shorter,
    parameters: describeParameters(parseModelConfig(shorter as Parameters<typeof parseModelConfig>[0], 'config.json')),
    read: (name) => weights.tensors.get(name)!.read('float32'),
    dtype: 'float32',
  });
  const result = await measureCacheQuality(resolveSettings(QUALITY_SETTINGS, { cache, student, teacher }));
  assert.equal(result.positions, states.length / hiddenSize);
  assert.ok(result.teacherCe > 1 && result.teacherCe < 6, `a teacher CE of ${result.teacherCe}`);
  const [full] = result.modes;
  for (const [temperature, { gradientError, gradientCosine, exactLoss, loss }] of Object.entries(full!.at)) {
    const where = `T = ${temperature}: error ${gradientError}, cosine ${gradientCosine}, loss ${loss} of ${exactLoss}`;
    console.log(where);
    assert.ok(gradientError > 1e-4 && gradientError < 0.1, where);
    assert.ok(gradientCosine > 0.995 && gradientCosine <= 1, where);
    assert.ok(Math.abs(loss / exactLoss - 1) < 0.05, where);
  }
});
