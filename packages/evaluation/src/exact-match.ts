import type { ModelConfig } from '@stillhouse/checkpoint';
import { StillhouseError } from '@stillhouse/errors';
import type { Generator } from '@stillhouse/model-runner';
import { wilsonInterval } from '@stillhouse/statistics';
import type { Tokenizer } from '@stillhouse/tokenizer';
import { answersMatch, extractFinalAnswer } from './answer-extraction.ts';
import type { Question } from './question-file.ts';

/** One question, what the model wrote, and what of it counts. */
export interface ExactMatchRecord {
  readonly id: string;
  readonly task?: string;
  /** The final answer found in the text; null when there is none, as in an answer cut off before its `####`. */
  readonly prediction: string | null;
  /** The expected final answer. */
  readonly answer: string;
  readonly correct: boolean;
  readonly text: string;
  readonly newTokens: number;
  /** `length`: the answer was cut off at the largest number of new tokens or at the end of the context. */
  readonly finishedBy: 'stop' | 'length';
}

export interface ExactMatchFigures {
  readonly questions: number;
  readonly correct: number;
  /** correct / questions, with its 95 % interval (Wilson). */
  readonly accuracy: number;
  readonly interval: { readonly low: number; readonly high: number };
  /** Answers that were cut off. */
  readonly truncated: number;
  readonly newTokens: number;
  readonly records: readonly ExactMatchRecord[];
}

/** A question as the ids that the model continues. */
export interface QuestionIds {
  readonly question: Question;
  readonly ids: Int32Array;
}

/**
 * Puts questions as the model is used to: bare questions and messages through its chat template with the assistant's
 * turn begun; prompts as they stand; bare questions where the model has no template as `transformers` encodes text.
 * @throws StillhouseError CHAT_TEMPLATE_MISSING, QUESTION_LONGER_THAN_CONTEXT, and those of the tokenizer
 */
export function encodeQuestions(
  questions: readonly Question[],
  tokenizer: Tokenizer,
  config: ModelConfig,
): readonly QuestionIds[] {
  return questions.map((question) => {
    const ids = encodePrompt(question, tokenizer);
    if (ids.length < config.maxPositions) return { question, ids };
    throw new StillhouseError({
      code: 'QUESTION_LONGER_THAN_CONTEXT',
      where: `question ${question.id}`,
      problem: "the question leaves no room for an answer in the model's context",
      expected: `at most ${config.maxPositions - 1} tokens`,
      got: String(ids.length),
      remedy: 'Leave the question out, or evaluate a model with a longer context',
    });
  });
}

function encodePrompt({ id, prompt }: Question, tokenizer: Tokenizer): Int32Array {
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
  const asked = messages.map(({ role, content }) => ({ role, content }));
  return tokenizer.encode(chatTemplate.render(asked, { addGenerationPrompt: true }));
}

/** Ids that end an answer: those of the model's files and the tokenizer's end of sequence. */
export function findStopIds(config: ModelConfig, tokenizer: Tokenizer): readonly number[] {
  const { eosTokenId } = tokenizer;
  return [...new Set([...config.eosTokenIds, ...(eosTokenId === undefined ? [] : [eosTokenId])])];
}

export interface ExactMatchOptions {
  readonly maxNewTokens: number;
  readonly stopIds: readonly number[];
  /** Told after each new token: questions done and right so far, new tokens so far. */
  readonly onProgress?: (done: {
    readonly questions: number;
    readonly correct: number;
    readonly tokens: number;
  }) => void;
}

/** Greedy answers to questions, scored by their final answers. */
export async function evaluateExactMatch(
  generator: Generator,
  tokenizer: Tokenizer,
  questions: readonly QuestionIds[],
  { maxNewTokens, stopIds, onProgress }: ExactMatchOptions,
): Promise<ExactMatchFigures> {
  const records: ExactMatchRecord[] = [];
  const done = { questions: 0, correct: 0, tokens: 0 };
  await generator.generateGreedy(
    questions.map(({ ids }) => ids),
    {
      maxNewTokens,
      stopIds,
      onToken: () => {
        done.tokens += 1;
        onProgress?.({ ...done });
      },
      onSequence: (index, { ids, finishedBy }) => {
        const { id, task, answer } = questions[index]!.question;
        const text = tokenizer.decode(ids, { skipSpecialTokens: true });
        const found = extractFinalAnswer(text);
        // The last number of an answer that was cut off is no final answer: it may be any step's.
        const isFinal = found?.source === 'marker' || finishedBy === 'stop';
        const prediction = found !== undefined && isFinal ? found.answer : null;
        const correct = prediction !== null && answersMatch(prediction, answer);
        const counted = { prediction, answer, correct, text, newTokens: ids.length, finishedBy };
        records[index] = { id, ...(task === undefined ? {} : { task }), ...counted };
        done.questions += 1;
        done.correct += Number(correct);
        onProgress?.({ ...done });
      },
    },
  );
  const { rate, low, high } = wilsonInterval(done.correct, records.length);
  return {
    questions: records.length,
    correct: done.correct,
    accuracy: rate,
    interval: { low, high },
    truncated: records.filter(({ finishedBy }) => finishedBy === 'length').length,
    newTokens: done.tokens,
    records,
  };
}
