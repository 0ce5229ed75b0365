import { join } from 'node:path';
import { unless } from '@stillhouse/testing';
import { hasTokenizer, openTokenizer } from '@stillhouse/tokenizer';
import { test } from 'vitest';
import { checkMasks } from '../testing/mask-vectors.ts';

const models = process.env.STILLHOUSE_MODELS;

for (const [name, folder] of [
  ['qwen2.5', 'qwen2.5-coder-0.5b'],
  ['smollm2', 'smollm2-135m'],
] as const) {
  const isThere = models !== undefined && (await hasTokenizer(join(models, folder)));
  const skip = isThere
    ? false
    : models === undefined
      ? 'STILLHOUSE_MODELS is not set'
      : `STILLHOUSE_MODELS has no ${folder}`;
  test(`${name}: conversations have transformers' ids and assistant masks`, unless(skip), async () => {
    checkMasks(await openTokenizer(join(models!, folder)), name);
  });
}
