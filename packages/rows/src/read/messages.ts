import type { ChatMessage, JsonValue } from '@stillhouse/tokenizer';
import { isObject, isPresent, type JsonObject, refuseType } from './fields.ts';

/** What a chat template renders. */
export interface Conversation {
  readonly messages: readonly ChatMessage[];
  /** JSON schemas of functions, for the chat template. */
  readonly tools?: readonly JsonValue[];
}

/** The conversation of a row or a question, with every key of its messages. @throws StillhouseError ROW_TYPE */
export function readConversation({ messages, tools }: JsonObject, where: string): Conversation {
  if (!Array.isArray(messages) || messages.length === 0) {
    refuseType(where, 'messages', 'a list of {"role", "content"}', messages);
  }
  messages.forEach((message: unknown, index) => {
    checkMessage(message, `messages[${index}]`, where);
  });
  if (isPresent(tools) && !(Array.isArray(tools) && tools.every(isObject))) {
    refuseType(where, 'tools', 'a list of JSON schemas', tools);
  }
  return {
    messages: messages as readonly ChatMessage[],
    ...(Array.isArray(tools) ? { tools: tools as readonly JsonValue[] } : {}),
  };
}

function checkMessage(message: unknown, name: string, where: string): void {
  if (!isObject(message)) refuseType(where, name, '{"role", "content"}', message);
  const { role, content } = message;
  if (typeof role !== 'string' || role === '') refuseType(where, `${name}.role`, 'a text', role);
  const isCall = role === 'assistant' && Array.isArray(message.tool_calls);
  if (typeof content !== 'string' && !(isCall && !isPresent(content))) {
    refuseType(where, `${name}.content`, 'a text', content);
  }
}
