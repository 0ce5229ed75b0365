import assert from 'node:assert/strict';
import { join } from 'node:path';
import { unless } from '@stillhouse/testing';
import { test } from 'vitest';
import { assertSameMeanings, compareMeanings, hasTokenizer, openTokenizer } from './index.ts';
import { checkConversationIds, checkEncodings, type RenderingVectors, readVectors } from './testing/vectors.ts';

const models = process.env.STILLHOUSE_MODELS;
const FOLDERS = {
  'qwen2.5': 'qwen2.5-coder-0.5b',
  'r1-distill-qwen': 'r1-distill-qwen-tokenizer',
  smollm2: 'smollm2-135m',
} as const;

async function missing(...names: readonly (keyof typeof FOLDERS)[]): Promise<string | false> {
  if (models === undefined) return 'STILLHOUSE_MODELS is not set';
  for (const name of names) {
    if (!(await hasTokenizer(join(models, FOLDERS[name])))) return `STILLHOUSE_MODELS has no ${FOLDERS[name]}`;
  }
  return false;
}

const open = (name: keyof typeof FOLDERS) => openTokenizer(join(models!, FOLDERS[name]));

for (const name of Object.keys(FOLDERS) as (keyof typeof FOLDERS)[]) {
  test(`${name}: texts and conversations have the ids that transformers gives them`, {
    ...unless(await missing(name)),
  }, async () => {
    const tokenizer = await open(name);
    const vectors = readVectors(name);
    checkEncodings(tokenizer, vectors);
    checkConversationIds(tokenizer, vectors, readVectors<RenderingVectors>(`rendered-${name}`));
  });
}

interface Published {
  readonly text: string;
  readonly ids: readonly number[];
}

test('published vectors hold', unless(await missing('qwen2.5', 'r1-distill-qwen')), async () => {
  const published = readVectors<Readonly<Record<string, readonly Published[]>>>('published');
  const qwen = await open('qwen2.5');
  const r1 = await open('r1-distill-qwen');
  const pairs = [
    [qwen, published.qwen2],
    [qwen, published.qwen2_self_computed],
    [r1, published['deepseek-r1-distill-qwen']],
  ] as const;
  for (const [tokenizer, vectors] of pairs) {
    assert.ok(vectors !== undefined && vectors.length > 0);
    for (const { text, ids } of vectors) assert.deepEqual([...tokenizer.encode(text)], ids, text);
  }
});

test('Qwen2.5 and R1-Distill-Qwen differ in ids 151643 to 151649', {
  ...unless(await missing('qwen2.5', 'r1-distill-qwen')),
}, async () => {
  const [qwen, r1] = [await open('qwen2.5'), await open('r1-distill-qwen')];
  const { differing, sharedCount } = compareMeanings(qwen, r1);
  assert.deepEqual(
    differing.map(({ id }) => id),
    [151643, 151644, 151645, 151646, 151647, 151648, 151649],
  );
  assert.deepEqual(differing[0], { id: 151643, a: '<|endoftext|>', b: '<｜end▁of▁sentence｜>' });
  assert.equal(sharedCount, 151658);
  assert.equal(r1.realVocabSize, 151665);
  assert.throws(() => assertSameMeanings(r1, qwen, 'cache', 'student'), {
    code: 'TOKENIZER_MISMATCH',
    message: /7 ids mean something else .*151648 "<think>" \/ "<\|box_start\|>"/,
  });
});

test('SmolLM2 is of another family', unless(await missing('qwen2.5', 'smollm2')), async () => {
  const [qwen, smollm] = [await open('qwen2.5'), await open('smollm2')];
  assert.throws(() => assertSameMeanings(qwen, smollm, 'cache', 'student'), {
    code: 'TOKENIZER_MISMATCH',
    message: /different families/,
  });
});
