import { StillhouseError } from '@stillhouse/errors';
import type { ChatTemplate, Tokenizer } from '@stillhouse/tokenizer';
import type { Conversation } from '../read/messages.ts';
import type { DataRow, RowContent, RowMetadata } from '../read/row-content.ts';
import { renderConversation } from './conversation-targets.ts';
import { findTargetTokens, type TokenSpan } from './target-tokens.ts';

/** What rows are held to. */
export interface EncodeOptions {
  /** Rows are cut to so many tokens; their end is lost. */
  readonly maxLength?: number;
  /** The most tokens the model can take. */
  readonly contextLength?: number;
  /** Ids are below it. */
  readonly vocabSize?: number;
  /** The data file, named in errors. */
  readonly where: string;
}

/** A row as it enters the cache, and where it came from. */
export interface EncodedRow extends RowMetadata {
  readonly id: string;
  /** [L] */
  readonly inputIds: Int32Array;
  /** [L] 1 where the token is to be predicted; the first is 0. */
  readonly lossMask: Uint8Array;
  readonly line: number;
  /** Tokens before `maxLength` cut it. */
  readonly untruncatedLength: number;
}

/**
 * Turns a row into ids and marks those that are to be predicted (the first token never is):
 *
 * - `messages`: the whole conversation through the chat template, ids as `transformers` gives them; every assistant
 *   turn's content with its end-of-turn token is a target, the role header and the newline after the turn are not. A
 *   token that holds both the header's end and the content's beginning is a target.
 * - `prompt` + `response`: each encoded as it stands, without special tokens of the tokenizer's own, so that no token
 *   spans the two and the response has the ids it has when it is generated; EOS is appended to the response if it does
 *   not end in it, and the response with it is the target.
 * - `text`: encoded as `transformers` does by default, EOS appended if absent; all is target.
 * - `input_ids`: as they are, with their mask.
 *
 * @param tokenizer null where there is none; then rows must be ids
 * @throws StillhouseError TOKENIZER_REQUIRED, CHAT_TEMPLATE_MISSING, EOS_MISSING, ROW_TEMPLATE_REWRITES, ROW_TOO_LONG,
 *   ROW_NO_TARGET, TOKEN_ID_OUT_OF_RANGE, and those of the template and the tokenizer, naming the row
 */
export function encodeRow(row: DataRow, tokenizer: Tokenizer | null, options: EncodeOptions): EncodedRow {
  const where = `${options.where}, line ${row.line}, row ${JSON.stringify(row.id)}`;
  const whole = namingRow(where, () => encodeContent(row.content, tokenizer, where));
  const untruncatedLength = whole.inputIds.length;
  const length = Math.min(untruncatedLength, options.maxLength ?? untruncatedLength);
  const inputIds = whole.inputIds.slice(0, length);
  const lossMask = whole.lossMask.slice(0, length);
  if (options.contextLength !== undefined && length > options.contextLength) {
    refuseLength(where, length, options.contextLength);
  }
  if (!lossMask.includes(1)) refuseWithoutTarget(where, whole, length);
  checkIds(inputIds, options.vocabSize, where);
  return { id: row.id, ...row.metadata, inputIds, lossMask, line: row.line, untruncatedLength };
}

interface Encoded {
  /** [L] */
  readonly inputIds: Int32Array;
  /** [L] */
  readonly lossMask: Uint8Array;
}

function encodeContent(content: RowContent, tokenizer: Tokenizer | null, where: string): Encoded {
  if (content.form === 'ids') return content;
  if (tokenizer === null) {
    throw new StillhouseError({
      code: 'TOKENIZER_REQUIRED',
      where,
      problem: 'the row is text, and the folder has no tokenizer',
      remedy: 'Name a folder with tokenizer.json, or give rows as input_ids and loss_mask',
    });
  }
  switch (content.form) {
    case 'messages': {
      const template = tokenizer.chatTemplate ?? refuseWithoutTemplate(tokenizer, where);
      return encodeConversation(content, tokenizer, template, where);
    }
    case 'exchange': {
      const prompt = tokenizer.encode(content.prompt);
      const response = withEos(tokenizer.encode(content.response), tokenizer, where);
      return markTargets(joinIds(prompt, response), [{ start: prompt.length, end: prompt.length + response.length }]);
    }
    default: {
      const inputIds = withEos(tokenizer.encodeWithSpecials(content.text), tokenizer, where);
      return markTargets(inputIds, [{ start: 0, end: inputIds.length }]);
    }
  }
}

/** The first token cannot be a target: nothing comes before it. */
function markTargets(inputIds: Int32Array, spans: readonly TokenSpan[]): Encoded {
  const lossMask = new Uint8Array(inputIds.length);
  for (const { start, end } of spans) lossMask.fill(1, Math.max(start, 1), end);
  return { inputIds, lossMask };
}

function withEos(ids: Int32Array, tokenizer: Tokenizer, where: string): Int32Array {
  const { eosTokenId } = tokenizer;
  if (eosTokenId === undefined) {
    throw new StillhouseError({
      code: 'EOS_MISSING',
      where,
      problem: `the row must end in the end-of-sequence token, but ${tokenizer.folder} names none`,
      remedy: 'Set eos_token in its tokenizer_config.json',
    });
  }
  return ids.at(-1) === eosTokenId ? ids : joinIds(ids, [eosTokenId]);
}

function joinIds(first: Int32Array, second: ArrayLike<number>): Int32Array {
  const joined = new Int32Array(first.length + second.length);
  joined.set(first);
  joined.set(second, first.length);
  return joined;
}

function encodeConversation(
  conversation: Conversation,
  tokenizer: Tokenizer,
  template: ChatTemplate,
  where: string,
): Encoded {
  const rendered = renderConversation(conversation, template, tokenizer.addedTokens, where);
  const inputIds = tokenizer.encode(rendered.text);
  return markTargets(inputIds, findTargetTokens(rendered, inputIds, tokenizer));
}

function checkIds(inputIds: Int32Array, vocabSize: number | undefined, where: string): void {
  if (vocabSize === undefined) return;
  const at = inputIds.findIndex((id) => id >= vocabSize);
  if (at < 0) return;
  throw new StillhouseError({
    code: 'TOKEN_ID_OUT_OF_RANGE',
    where,
    problem: `token ${at} is not in the model's vocabulary`,
    expected: `ids below ${vocabSize}`,
    got: String(inputIds[at]),
    remedy: 'Use the tokenizer that belongs to the model',
  });
}

/** Errors of the tokenizer and the template name their folder; here the row is what matters. */
function namingRow<Result>(where: string, encode: () => Result): Result {
  try {
    return encode();
  } catch (error) {
    if (!(error instanceof StillhouseError) || error.report.where.startsWith(where)) throw error;
    throw new StillhouseError({
      ...error.report,
      where,
      problem: `${error.report.problem} (${error.report.where})`,
      cause: error,
    });
  }
}

function refuseWithoutTemplate(tokenizer: Tokenizer, where: string): never {
  throw new StillhouseError({
    code: 'CHAT_TEMPLATE_MISSING',
    where,
    problem: `the row is a conversation, and ${tokenizer.folder} has no chat template`,
    remedy: 'Write the row as prompt and response, or put a chat_template.jinja into the folder',
  });
}

function refuseLength(where: string, length: number, contextLength: number): never {
  throw new StillhouseError({
    code: 'ROW_TOO_LONG',
    where,
    problem: "the row is longer than the model's context",
    expected: `at most ${contextLength} tokens`,
    got: String(length),
    remedy: `Shorten the row, or cut all rows with --max-length ${contextLength}`,
  });
}

function refuseWithoutTarget(where: string, whole: Encoded, length: number): never {
  const first = whole.lossMask.indexOf(1);
  throw new StillhouseError({
    code: 'ROW_NO_TARGET',
    where,
    problem:
      first < 0
        ? 'the row has no token to learn'
        : `cut to ${length} tokens, the row has none to learn: its first is token ${first}`,
    remedy: first < 0 ? 'Leave the row out' : 'Raise --max-length, or leave the row out',
  });
}
