import type { ModelConfig } from '@stillhouse/checkpoint';
import type { Question, QuestionPrompt } from '@stillhouse/rows';
import type { Tokenizer } from '@stillhouse/tokenizer';

/** A question to put to a model, and the answer that is right. */
export interface TaskItem {
  readonly id: string;
  /** What the question says of its task. */
  readonly task?: string;
  readonly prompt: QuestionPrompt;
  /** The expected final answer, normalised. */
  readonly answer: string;
}

/** What a model wrote. */
export interface WrittenAnswer {
  readonly text: string;
  /** `length`: the answer was cut off at the largest number of new tokens or at the end of the context. */
  readonly finishedBy: 'stop' | 'length';
}

/** What is said of an answer. */
export interface Verdict {
  /** The final answer found in the text; null when there is none, as in an answer cut off before its `####`. */
  readonly prediction: string | null;
  readonly correct: boolean;
}

/** What a task asks, where an answer ends, and when it is right. */
export interface Task {
  /** @throws StillhouseError QUESTION_ANSWER */
  readonly readItem: (question: Question) => TaskItem;
  /**
   * The ids that the model continues, [L].
   * @throws StillhouseError CHAT_TEMPLATE_MISSING, QUESTION_LONGER_THAN_CONTEXT, and those of the tokenizer
   */
  readonly encodePrompt: (item: TaskItem, tokenizer: Tokenizer, config: ModelConfig) => Int32Array;
  /** Ids that end an answer. */
  readonly findStopIds: (config: ModelConfig, tokenizer: Tokenizer) => readonly number[];
  readonly judge: (item: TaskItem, written: WrittenAnswer) => Verdict;
}
