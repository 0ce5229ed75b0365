import type { ModelConfig } from '@stillhouse/checkpoint';
import { StillhouseError } from '@stillhouse/errors';
import type { Tokenizer } from '@stillhouse/tokenizer';
import type { TaskItem } from './task.ts';

/**
 * Puts a question as the model is used to: bare questions and messages through its chat template with the assistant's
 * turn begun; prompts as they stand; bare questions where the model has no template as `transformers` encodes text.
 * @returns [L]
 * @throws StillhouseError CHAT_TEMPLATE_MISSING, QUESTION_LONGER_THAN_CONTEXT, and those of the tokenizer
 */
export function encodePrompt(item: TaskItem, tokenizer: Tokenizer, config: ModelConfig): Int32Array {
  const ids = encodeText(item, tokenizer);
  if (ids.length < config.maxPositions) return ids;
  throw new StillhouseError({
    code: 'QUESTION_LONGER_THAN_CONTEXT',
    where: `question ${item.id}`,
    problem: "the question leaves no room for an answer in the model's context",
    expected: `at most ${config.maxPositions - 1} tokens`,
    got: String(ids.length),
    remedy: 'Leave the question out, or evaluate a model with a longer context',
  });
}

function encodeText({ id, prompt }: TaskItem, tokenizer: Tokenizer): Int32Array {
  const { chatTemplate } = tokenizer;
  // As caches join prompt and response: without special tokens of the tokenizer's own.
  if (prompt.kind === 'text') return tokenizer.encode(prompt.text);
  if (chatTemplate === undefined) {
    if (prompt.kind === 'question') return tokenizer.encodeWithSpecials(prompt.text);
    throw new StillhouseError({
      code: 'CHAT_TEMPLATE_MISSING',
      where: `${tokenizer.folder}, question ${id}`,
      problem: 'the question is a conversation and the model has no chat template',
      remedy: 'Give questions as {"prompt", "answer"}, or add a chat_template.jinja to the model folder',
    });
  }
  const messages = prompt.kind === 'messages' ? prompt.messages : [{ role: 'user', content: prompt.text }];
  // Templates write their own special tokens.
  return tokenizer.encode(chatTemplate.render(messages, { addGenerationPrompt: true }));
}

/** Ids that end an answer: those of the model's files and the tokenizer's end of sequence. */
export function findStopIds(config: ModelConfig, tokenizer: Tokenizer): readonly number[] {
  const { eosTokenId } = tokenizer;
  return [...new Set([...config.eosTokenIds, ...(eosTokenId === undefined ? [] : [eosTokenId])])];
}
