import { StillhouseError } from '@stillhouse/errors';
import { isPresent, type JsonObject, refuseType, requireText } from './fields.ts';
import { readConversation } from './messages.ts';
import type { RowContent } from './row-content.ts';

export const ROW_FORMS =
  '{"messages"}, {"prompt", "response"}, {"question", "answer"}, {"text"} or {"input_ids", "loss_mask"}';

/** The forms that a row has: one, if it is a good row. */
export function listForms(row: JsonObject): readonly string[] {
  const has = (key: string) => isPresent(row[key]);
  return [
    has('messages') && 'messages',
    has('prompt') && has('response') && 'prompt and response',
    has('text') && 'text',
    has('input_ids') && has('loss_mask') && 'input_ids and loss_mask',
  ].filter((form) => form !== false);
}

/** What a row says. @throws StillhouseError ROW_FORM, ROW_TYPE, ROW_LOSS_MASK, ROW_NO_ASSISTANT */
export function readContent(row: JsonObject, where: string): RowContent {
  const forms = listForms(row);
  if (forms.length !== 1) {
    throw new StillhouseError({
      code: 'ROW_FORM',
      where,
      problem: forms.length === 0 ? 'a row of no known form' : `a row of several forms: ${forms.join('; ')}`,
      expected: ROW_FORMS,
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
  const conversation = readConversation(row, where);
  const roles = conversation.messages.map(({ role }) => role);
  if (!roles.includes('assistant')) {
    throw new StillhouseError({
      code: 'ROW_NO_ASSISTANT',
      where,
      problem: 'the conversation has no assistant turn, so nothing to learn',
      got: `the roles ${roles.join(', ')}`,
    });
  }
  return { form: 'messages', ...conversation };
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

function refuseMask(where: string, problem: string, expected?: string, got?: string): never {
  throw new StillhouseError({
    code: 'ROW_LOSS_MASK',
    where,
    problem,
    ...(expected === undefined ? {} : { expected }),
    ...(got === undefined ? {} : { got }),
  });
}
