import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import type { ChatMessage, Tokenizer } from '@stillhouse/tokenizer';
import { encodeRow } from '../encode/encode-row.ts';

interface MaskVectors {
  readonly rows: readonly {
    readonly messages: readonly ChatMessage[];
    readonly ids: readonly number[];
    readonly mask: readonly number[];
  }[];
}

/** Ids and masks of the conversations that test/data-rows/make_masks.py put through transformers. */
export function checkMasks(tokenizer: Tokenizer, name: string): void {
  const path = new URL(`../../../../test/data-rows/${name}.json`, import.meta.url);
  const { rows } = JSON.parse(readFileSync(path, 'utf8')) as MaskVectors;
  assert.ok(rows.length >= 20);
  for (const { messages, ids, mask } of rows) {
    const row = { id: 'x', line: 1, metadata: {}, content: { form: 'messages', messages } } as const;
    const encoded = encodeRow(row, tokenizer, { where: 'data' });
    assert.deepEqual([...encoded.inputIds], ids, JSON.stringify(messages));
    assert.deepEqual([...encoded.lossMask], mask, JSON.stringify(messages));
  }
}
