import { readFile } from 'node:fs/promises';
import { StillhouseError } from '@stillhouse/errors';
import { extractFinalAnswer, normaliseAnswer } from './answer-extraction.ts';

export interface ChatMessage {
  readonly role: string;
  readonly content: string;
}

/**
 * How a question is put: `question` is a bare question for the evaluator to wrap (chat template or not), `text` is
 * continued as it stands, `messages` go through the chat template.
 */
export type QuestionPrompt =
  | { readonly kind: 'question'; readonly text: string }
  | { readonly kind: 'text'; readonly text: string }
  | { readonly kind: 'messages'; readonly messages: readonly ChatMessage[] };

export interface Question {
  /** The row's `id`, otherwise `line-N`. */
  readonly id: string;
  readonly prompt: QuestionPrompt;
  /** The expected final answer, normalised. */
  readonly answer: string;
  readonly task?: string;
}

const FORMS = '{"question","answer"}, {"prompt","answer"} or {"messages","answer"}';

/**
 * Reads a JSON-lines file of questions with known final answers; empty lines are skipped.
 *
 * Three forms: GSM8K's `{"question", "answer"}`; and data rows with `prompt` or `messages`, whose `answer` may be left
 * out where the `response`, or the last assistant message, ends in `#### answer`. An assistant message at the end is
 * the worked answer and never part of the prompt. With `limit`, reading stops there, and later lines are not checked.
 *
 * @throws StillhouseError QUESTIONS_NOT_READABLE, QUESTIONS_EMPTY, QUESTION_NOT_JSON, QUESTION_FORM, QUESTION_ANSWER
 */
export async function readQuestionFile(
  path: string,
  options: { readonly limit?: number } = {},
): Promise<readonly Question[]> {
  const limit = options.limit ?? Number.POSITIVE_INFINITY;
  const questions: Question[] = [];
  const content = await readFile(path, 'utf8').catch((cause: unknown) => {
    throw new StillhouseError({
      code: 'QUESTIONS_NOT_READABLE',
      where: path,
      problem: `the question file cannot be read (${(cause as NodeJS.ErrnoException).code ?? String(cause)})`,
      remedy: 'Check the path given with --data',
      cause,
    });
  });
  // Not node:readline: it also ends lines at U+2028 and U+2029, which are legal inside JSON strings.
  for (const [index, line] of content
    .replace(/^\uFEFF/, '')
    .split('\n')
    .entries()) {
    if (questions.length >= limit) break;
    if (line.trim() !== '') questions.push(parseQuestion(line, path, index + 1));
  }
  if (questions.length === 0) {
    throw new StillhouseError({
      code: 'QUESTIONS_EMPTY',
      where: path,
      problem: 'the file holds no question',
      expected: `JSON lines such as ${FORMS}`,
    });
  }
  return questions;
}

function parseQuestion(line: string, path: string, lineNumber: number): Question {
  const where = `${path}, line ${lineNumber}`;
  const row = parseObject(line, where);
  const { prompt, worked } = readPrompt(row, where);
  const id = typeof row.id === 'string' || typeof row.id === 'number' ? String(row.id) : `line-${lineNumber}`;
  const answer = readAnswer(row.answer, worked, where);
  return { id, prompt, answer, ...(typeof row.task === 'string' ? { task: row.task } : {}) };
}

function parseObject(line: string, where: string): Readonly<Record<string, unknown>> {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (cause) {
    const problem = `not valid JSON (${(cause as Error).message})`;
    throw new StillhouseError({ code: 'QUESTION_NOT_JSON', where, problem, expected: `one of ${FORMS}`, cause });
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    const got = value === null ? 'null' : Array.isArray(value) ? 'an array' : `a ${typeof value}`;
    throw new StillhouseError({ code: 'QUESTION_FORM', where, problem: 'not an object', expected: FORMS, got });
  }
  return value as Record<string, unknown>;
}

interface FoundPrompt {
  readonly prompt: QuestionPrompt;
  /** A worked answer in the row, to take the final answer from where the row names none. */
  readonly worked?: string;
}

function readPrompt(row: Readonly<Record<string, unknown>>, where: string): FoundPrompt {
  if (typeof row.question === 'string' && row.question.trim() !== '') {
    return { prompt: { kind: 'question', text: row.question } };
  }
  if (typeof row.prompt === 'string' && row.prompt !== '') {
    const worked = typeof row.response === 'string' ? { worked: row.response } : {};
    return { prompt: { kind: 'text', text: row.prompt }, ...worked };
  }
  if (Array.isArray(row.messages) && row.messages.length > 0 && row.messages.every(isMessage)) {
    const messages: readonly ChatMessage[] = row.messages.map(({ role, content }) => ({ role, content }));
    const last = messages.at(-1);
    const asked = last?.role === 'assistant' ? messages.slice(0, -1) : messages;
    if (asked.some(({ role }) => role === 'user')) {
      const worked = last?.role === 'assistant' ? { worked: last.content } : {};
      return { prompt: { kind: 'messages', messages: asked }, ...worked };
    }
  }
  throw new StillhouseError({
    code: 'QUESTION_FORM',
    where,
    problem: 'no question to ask',
    expected: `${FORMS}, with non-empty texts and a user message`,
    got: `the keys ${Object.keys(row).join(', ') || '(none)'}`,
  });
}

function isMessage(value: unknown): value is ChatMessage {
  const message = value as Partial<ChatMessage> | null;
  return typeof message?.role === 'string' && typeof message.content === 'string';
}

function readAnswer(value: unknown, worked: string | undefined, where: string): string {
  const given = typeof value === 'number' ? String(value) : value;
  // A worked answer (GSM8K) names its result after the marker; a plain answer is the result itself.
  const text = given ?? worked;
  if (typeof text === 'string') {
    const found = extractFinalAnswer(text);
    if (found?.source === 'marker') return found.answer;
    const plain = given === undefined ? '' : normaliseAnswer(text);
    if (plain !== '') return plain;
  }
  throw new StillhouseError({
    code: 'QUESTION_ANSWER',
    where,
    problem: 'no expected answer',
    expected: 'an "answer" such as "27", or a worked answer that ends in "#### 27"',
    got: given === undefined ? 'none' : JSON.stringify(value).slice(0, 60),
  });
}
