import { StillhouseError } from '@stillhouse/errors';
import type { ChatMessage, JsonValue } from '@stillhouse/tokenizer';
import type { RowContent, RowMetadata } from './row-content.ts';

export interface ParsedRow {
  /** As the row has it; undefined where it has none. */
  readonly givenId: string | undefined;
  readonly metadata: RowMetadata;
  readonly content: RowContent;
  /** The line's JSON. */
  readonly value: JsonObject;
}

type JsonObject = Readonly<Record<string, unknown>>;

const FORMS = '{"messages"}, {"prompt", "response"}, {"text"} or {"input_ids", "loss_mask"}';

/** Reads one line. @throws StillhouseError DATA_NOT_JSON, ROW_FORM, ROW_TYPE, ROW_LOSS_MASK, ROW_NO_ASSISTANT */
export function parseRow(line: string, where: string): ParsedRow {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (cause) {
    const problem = `not valid JSON (${(cause as Error).message})`;
    throw new StillhouseError({ code: 'DATA_NOT_JSON', where, problem, expected: `one row a line: ${FORMS}`, cause });
  }
  if (!isObject(value)) {
    throw new StillhouseError({
      code: 'ROW_FORM',
      where,
      problem: 'not an object',
      expected: FORMS,
      got: nameKind(value),
    });
  }
  const metadata = {
    ...readText(value, 'task', where),
    ...readText(value, 'split', where),
    ...readText(value, 'source', where),
    ...readText(value, 'answer', where, true),
  };
  const { id } = readText(value, 'id', where, true);
  if (id === '') refuseType(where, 'id', 'a text that is not empty', id);
  return { givenId: id, metadata, content: readContent(value, where), value };
}

function readContent(row: JsonObject, where: string): RowContent {
  const has = (key: string) => row[key] !== undefined && row[key] !== null;
  const forms = [
    has('messages') && 'messages',
    has('prompt') && has('response') && 'prompt and response',
    has('text') && 'text',
    has('input_ids') && has('loss_mask') && 'input_ids and loss_mask',
  ].filter((form) => form !== false);
  if (forms.length !== 1) {
    throw new StillhouseError({
      code: 'ROW_FORM',
      where,
      problem: forms.length === 0 ? 'a row of no known form' : `a row of several forms: ${forms.join('; ')}`,
      expected: FORMS,
      got: `the keys ${Object.keys(row).join(', ') || '(none)'}`,
    });
  }
  switch (forms[0]) {
    case 'messages':
      return readMessages(row, where);
    case 'text':
      return { form: 'text', text: requireText(row.text, 'text', where) };
    case 'prompt and response':
      return {
        form: 'exchange',
        prompt: requireText(row.prompt, 'prompt', where),
        response: requireText(row.response, 'response', where),
      };
    default:
      return readIds(row, where);
  }
}

function readMessages(row: JsonObject, where: string): RowContent {
  const { messages, tools } = row;
  if (!Array.isArray(messages) || messages.length === 0) {
    refuseType(where, 'messages', 'a list of {"role", "content"}', messages);
  }
  messages.forEach((message: unknown, index) => {
    const name = `messages[${index}]`;
    if (!isObject(message)) refuseType(where, name, '{"role", "content"}', message);
    if (typeof message.role !== 'string' || message.role === '')
      refuseType(where, `${name}.role`, 'a text', message.role);
    const isCall = message.role === 'assistant' && Array.isArray(message.tool_calls);
    const isAbsent = message.content === undefined || message.content === null;
    if (typeof message.content !== 'string' && !(isCall && isAbsent)) {
      refuseType(where, `${name}.content`, 'a text', message.content);
    }
  });
  if (tools !== undefined && tools !== null && !(Array.isArray(tools) && tools.every(isObject))) {
    refuseType(where, 'tools', 'a list of JSON schemas', tools);
  }
  if (!messages.some((message: JsonObject) => message.role === 'assistant')) {
    throw new StillhouseError({
      code: 'ROW_NO_ASSISTANT',
      where,
      problem: 'the conversation has no assistant turn, so nothing to learn',
      got: `the roles ${messages.map((message: JsonObject) => message.role).join(', ')}`,
    });
  }
  const checked = messages as readonly ChatMessage[];
  return {
    form: 'messages',
    messages: checked,
    ...(Array.isArray(tools) ? { tools: tools as readonly JsonValue[] } : {}),
  };
}

const MAX_ID = 2 ** 31 - 1;

function readIds(row: JsonObject, where: string): RowContent {
  const { input_ids: ids, loss_mask: mask } = row;
  if (!Array.isArray(ids) || ids.length === 0) refuseType(where, 'input_ids', 'a list of token ids', ids);
  if (!Array.isArray(mask)) refuseType(where, 'loss_mask', 'a list of 0 and 1', mask);
  const badId = ids.findIndex((id) => !Number.isInteger(id) || id < 0 || id > MAX_ID);
  if (badId >= 0) refuseType(where, `input_ids[${badId}]`, 'a token id (a whole number from 0)', ids[badId]);
  const badBit = mask.findIndex((bit) => bit !== 0 && bit !== 1);
  if (badBit >= 0) refuseType(where, `loss_mask[${badBit}]`, '0 or 1', mask[badBit]);
  if (mask.length !== ids.length) {
    refuseMask(where, 'loss_mask is not as long as input_ids', `${ids.length} entries, one a token`, `${mask.length}`);
  }
  if (mask[0] === 1) refuseMask(where, 'loss_mask starts with 1, but nothing predicts the first token', '0', '1');
  if (!mask.includes(1)) refuseMask(where, 'loss_mask has no 1, so there is nothing to learn');
  return { form: 'ids', inputIds: Int32Array.from(ids), lossMask: Uint8Array.from(mask) };
}

function readText<Key extends string>(
  row: JsonObject,
  key: Key,
  where: string,
  allowNumber = false,
): { readonly [K in Key]?: string } {
  const value = row[key];
  if (value === undefined || value === null) return {};
  const text = allowNumber && typeof value === 'number' ? String(value) : value;
  return { [key]: requireText(text, key, where, allowNumber) } as { readonly [K in Key]?: string };
}

function requireText(value: unknown, name: string, where: string, allowNumber = false): string {
  if (typeof value !== 'string') refuseType(where, name, allowNumber ? 'a text or a number' : 'a text', value);
  return value;
}

const isObject = (value: unknown): value is JsonObject =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

function nameKind(value: unknown): string {
  if (value === undefined) return 'nothing';
  if (value === null) return 'null';
  if (Array.isArray(value)) return value.length === 0 ? 'an empty list' : 'a list';
  if (typeof value === 'object') return 'an object';
  const shown = JSON.stringify(value);
  return shown.length > 40 ? `${shown.slice(0, 40)}…` : shown;
}

function refuseType(where: string, name: string, expected: string, value: unknown): never {
  throw new StillhouseError({
    code: 'ROW_TYPE',
    where,
    problem: `${name} is of the wrong type`,
    expected,
    got: nameKind(value),
  });
}

function refuseMask(where: string, problem: string, expected?: string, got?: string): never {
  throw new StillhouseError({
    code: 'ROW_LOSS_MASK',
    where,
    problem,
    ...(expected === undefined ? {} : { expected }),
    ...(got === undefined ? {} : { got }),
  });
}
