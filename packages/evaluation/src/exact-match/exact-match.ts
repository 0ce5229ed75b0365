import type { Generator } from '@stillhouse/model-runner';
import { wilsonInterval } from '@stillhouse/statistics';
import type { Task, TaskItem } from '@stillhouse/tasks';
import type { Tokenizer } from '@stillhouse/tokenizer';

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
export interface AskedItem {
  readonly item: TaskItem;
  /** [L] */
  readonly ids: Int32Array;
}

export interface ExactMatchOptions {
  /** Judges the answers. */
  readonly task: Task;
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
  asked: readonly AskedItem[],
  { task, maxNewTokens, stopIds, onProgress }: ExactMatchOptions,
): Promise<ExactMatchFigures> {
  const records: ExactMatchRecord[] = [];
  const done = { questions: 0, correct: 0, tokens: 0 };
  await generator.generateGreedy(
    asked.map(({ ids }) => ids),
    {
      maxNewTokens,
      stopIds,
      onToken: () => {
        done.tokens += 1;
        onProgress?.({ ...done });
      },
      onSequence: (index, { ids, finishedBy }) => {
        const { item } = asked[index]!;
        const { id, answer } = item;
        const text = tokenizer.decode(ids, { skipSpecialTokens: true });
        const { prediction, correct } = task.judge(item, { text, finishedBy });
        const counted = { prediction, answer, correct, text, newTokens: ids.length, finishedBy };
        records[index] = { id, ...(item.task === undefined ? {} : { task: item.task }), ...counted };
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
