import { StillhouseError } from '@stillhouse/errors';
import type { Question } from '@stillhouse/rows';
import { answersMatch, extractFinalAnswer, normaliseAnswer } from './answer-extraction.ts';
import { encodePrompt, findStopIds } from './prompt.ts';
import type { Task, TaskItem, Verdict, WrittenAnswer } from './task.ts';

/** Worked answers by their final answer, as GSM8K scores them. */
export const exactMatch: Task = { readItem, encodePrompt, findStopIds, judge };

function readItem(question: Question): TaskItem {
  const { id, prompt, task } = question;
  return { id, prompt, answer: readExpected(question), ...(task === undefined ? {} : { task }) };
}

function readExpected({ answer: given, worked, where }: Question): string {
  // A worked answer (GSM8K) names its result after the marker; a plain answer is the result itself.
  const found = extractFinalAnswer(given ?? worked ?? '');
  if (found?.source === 'marker') return found.answer;
  const plain = normaliseAnswer(given ?? '');
  if (plain !== '') return plain;
  throw new StillhouseError({
    code: 'QUESTION_ANSWER',
    where,
    problem: 'no expected answer',
    expected: 'an "answer" such as "27", or a worked answer that ends in "#### 27"',
    got: given === undefined ? 'none' : JSON.stringify(given).slice(0, 60),
  });
}

function judge({ answer }: TaskItem, { text, finishedBy }: WrittenAnswer): Verdict {
  const found = extractFinalAnswer(text);
  // The last number of an answer that was cut off is no final answer: it may be any step's.
  const isFinal = found?.source === 'marker' || finishedBy === 'stop';
  const prediction = found !== undefined && isFinal ? found.answer : null;
  return { prediction, correct: prediction !== null && answersMatch(prediction, answer) };
}
