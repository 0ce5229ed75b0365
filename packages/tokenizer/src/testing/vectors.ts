import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { ChatMessage, JsonValue } from '../chat-template.ts';
import type { Tokenizer } from '../tokenizer.ts';

/** What `test/tokenizer/make_vectors.py` writes of one tokenizer. */
export interface EncodingVectors {
  readonly texts: readonly {
    readonly text: string;
    readonly ids: readonly number[];
    readonly withSpecials: readonly number[];
    readonly decoded: string;
    readonly skipped: string;
    readonly cut: string;
  }[];
  readonly longTexts: readonly ({ readonly piece: string; readonly count: number } & IdDigest)[];
  readonly conversationIds: readonly (IdDigest | null)[];
  readonly preTokenizer: JsonValue;
  readonly autoTokenizerDiffers: readonly string[];
}

export interface IdDigest {
  readonly length: number;
  /** Over little-endian int32. */
  readonly idsSha256: string;
}

export interface RenderingVectors {
  readonly specialTokens: Readonly<Record<string, string>>;
  readonly conversations: readonly {
    readonly messages: readonly ChatMessage[];
    readonly tools: readonly JsonValue[] | null;
    readonly addGenerationPrompt: boolean;
    readonly text?: string;
    readonly error?: string;
  }[];
}

export const vectorFolder = new URL('../../../../test/tokenizer/', import.meta.url);

export function readVectors<Vectors = EncodingVectors>(name: string): Vectors {
  return JSON.parse(readFileSync(new URL(`${name}.json`, vectorFolder), 'utf8')) as Vectors;
}

/** Every text of `vectors` both ways, and the long ones. */
export function checkEncodings(tokenizer: Tokenizer, vectors: EncodingVectors): void {
  assert.ok(vectors.texts.length > 50 && vectors.longTexts.length > 5);
  for (const { text, ids, withSpecials, decoded, skipped, cut } of vectors.texts) {
    const name = JSON.stringify(text);
    assert.deepEqual([...tokenizer.encode(text)], ids, name);
    assert.deepEqual([...tokenizer.encodeWithSpecials(text)], withSpecials, name);
    assert.equal(tokenizer.decode(ids), decoded, name);
    assert.equal(tokenizer.decode(ids, { skipSpecialTokens: true }), skipped, name);
    assert.equal(tokenizer.decode(ids.slice(1, -1)), cut, name);
  }
  for (const { piece, count, ...expected } of vectors.longTexts) {
    assert.deepEqual(digestIds(tokenizer.encode(piece.repeat(count))), expected, `${count} x ${JSON.stringify(piece)}`);
  }
}

/** The ids of every rendered conversation. */
export function checkConversationIds(tokenizer: Tokenizer, vectors: EncodingVectors, rendered: RenderingVectors): void {
  assert.equal(vectors.conversationIds.length, rendered.conversations.length);
  vectors.conversationIds.forEach((expected, index) => {
    const { text } = rendered.conversations[index]!;
    assert.deepEqual(text === undefined ? null : digestIds(tokenizer.encode(text)), expected, text);
  });
}

function digestIds(ids: Int32Array): IdDigest {
  const bytes = Buffer.alloc(ids.length * 4);
  ids.forEach((id, index) => {
    bytes.writeInt32LE(id, index * 4);
  });
  return { length: ids.length, idsSha256: createHash('sha256').update(bytes).digest('hex') };
}
