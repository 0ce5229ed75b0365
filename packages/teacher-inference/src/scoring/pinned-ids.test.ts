import assert from 'node:assert/strict';
import { join } from 'node:path';
import type { TopKPolicy } from '@stillhouse/teacher-cache';
import { copyTinyTokenizer, makeTemporaryFolder, makeTinyR1, tinyQwenFolder } from '@stillhouse/testing';
import { openTokenizer } from '@stillhouse/tokenizer';
import { test } from 'vitest';
import { pinIds } from './pinned-ids.ts';

const fixed: TopKPolicy = { k: 8, temperatures: [1] };
const ragged: TopKPolicy = { ...fixed, topP: 0.9, minK: 1 };
const vocabulary = { size: 2048, eosTokenIds: [1999] };

test('auto pins what ends a sequence, a turn or the thinking, and only beside a mass', async (t) => {
  const folder = await makeTemporaryFolder(t);
  const tokensOf = (tokenizer: Awaited<ReturnType<typeof openTokenizer>>, policy: TopKPolicy) =>
    pinIds(policy, ['auto'], { ...vocabulary, eosTokenIds: [] }, tokenizer).pinnedIds!.map((id) =>
      tokenizer.tokenOf(id),
    );
  const qwen = await openTokenizer(tinyQwenFolder);
  assert.deepEqual(tokensOf(qwen, ragged), ['<|im_end|>']);
  assert.deepEqual(tokensOf(qwen, fixed), []);
  const otherEnd = copyTinyTokenizer(join(folder, 'base'), {
    'tokenizer_config.json': { eos_token: '<|endoftext|>' },
  });
  assert.deepEqual(tokensOf(await openTokenizer(otherEnd), ragged).sort(), ['<|endoftext|>', '<|im_end|>']);
  const r1 = await openTokenizer(makeTinyR1(join(folder, 'r1'), 'r1-distill-qwen'));
  assert.deepEqual(tokensOf(r1, ragged), ['<｜end▁of▁sentence｜>', '</think>']);
});

test('without a tokenizer auto pins the ids that end a generation, as far as the teacher has them', () => {
  assert.deepEqual(pinIds(ragged, ['auto'], { size: 10, eosTokenIds: [9, 12, 3] }, null).pinnedIds, [3, 9]);
  assert.deepEqual(pinIds(ragged, ['none'], vocabulary, null).pinnedIds, []);
});

test('tokens and ids that are named are pinned, beside a fixed k too', async () => {
  const qwen = await openTokenizer(tinyQwenFolder);
  const { pinnedIds } = pinIds(fixed, ['<|im_end|>', 7, 3, 7], vocabulary, qwen);
  assert.deepEqual(pinnedIds, [3, 7, qwen.idOf('<|im_end|>')]);
  assert.throws(() => pinIds(fixed, ['<|nothing|>'], vocabulary, qwen), {
    code: 'PINNED_ID_UNKNOWN',
    message: /no such id or token; .*0 to 2047, got <\|nothing\|>/,
  });
});
