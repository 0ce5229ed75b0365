import { StillhouseError } from '@stillhouse/errors';
import type { ChatMessage } from '@stillhouse/tokenizer';
import { isPresent, type JsonObject, readText, requireText } from './fields.ts';
import { readConversation } from './messages.ts';
import { type ReadOptions, type RecordKind, readRecords } from './records.ts';

/**
 * How a question is put: `question` is a bare question for the asker to wrap (chat template or not), `text` is
 * continued as it stands, `messages` go through the chat template.
 */
export type QuestionPrompt =
  | { readonly kind: 'question'; readonly text: string }
  | { readonly kind: 'text'; readonly text: string }
  | { readonly kind: 'messages'; readonly messages: readonly ChatMessage[] };

/** A line of a file of questions. */
export interface Question {
  /** Unique in its file: the line's `id`, otherwise `line-N`. */
  readonly id: string;
  /** File and line, named in errors. */
  readonly where: string;
  readonly prompt: QuestionPrompt;
  /** What the line names as its answer: the result itself, or a worked answer that ends in it. */
  readonly answer?: string;
  /** A worked answer beside it: the `response`, or the assistant's message at the end. */
  readonly worked?: string;
  readonly task?: string;
}

const FORMS = '{"question","answer"}, {"prompt","answer"} or {"messages","answer"}';
const QUESTION: RecordKind = { name: 'question', forms: FORMS, idSource: 'the line' };

/**
 * Reads a JSON-lines file of questions; empty lines are skipped, and a fault further down shows when it is reached.
 *
 * Three forms: GSM8K's `{"question", "answer"}`; and data rows with `prompt` or `messages`, whose `answer` may be left
 * out where the `response`, or the last assistant message, is a worked answer. An assistant message at the end is never
 * part of the prompt.
 *
 * @throws StillhouseError DATA_NOT_READABLE, DATA_EMPTY, DATA_NOT_UTF8, DATA_NOT_JSON, ROW_FORM, ROW_TYPE,
 *   ROW_ID_DUPLICATE
 */
export async function* readQuestions(path: string, options: ReadOptions = {}): AsyncGenerator<Question> {
  for await (const { id, where, metadata, value } of readRecords(path, QUESTION, options)) {
    const { answer, task } = metadata;
    yield {
      ...{ id, where, ...readPrompt(value, where) },
      ...(answer === undefined ? {} : { answer }),
      ...(task === undefined ? {} : { task }),
    };
  }
}

type FoundPrompt = Pick<Question, 'prompt' | 'worked'>;

function readPrompt(row: JsonObject, where: string): FoundPrompt {
  const { question = '' } = readText(row, 'question', where);
  if (question.trim() !== '') return { prompt: { kind: 'question', text: question } };
  const { prompt = '' } = readText(row, 'prompt', where);
  if (prompt !== '') {
    const { response } = readText(row, 'response', where);
    return { prompt: { kind: 'text', text: prompt }, ...(response === undefined ? {} : { worked: response }) };
  }
  const found = isPresent(row.messages) ? readTurns(row, where) : undefined;
  if (found !== undefined) return found;
  throw new StillhouseError({
    code: 'ROW_FORM',
    where,
    problem: 'no question to ask',
    expected: `${FORMS}, with non-empty texts and a user message`,
    got: `the keys ${Object.keys(row).join(', ') || '(none)'}`,
  });
}

/** Undefined where no user asks. */
function readTurns(row: JsonObject, where: string): FoundPrompt | undefined {
  const messages = readConversation(row, where).messages.map(({ role, content }, index) => ({
    role,
    content: requireText(content, `messages[${index}].content`, where),
  }));
  const last = messages.at(-1);
  const worked = last?.role === 'assistant' ? { worked: last.content } : {};
  const asked = last?.role === 'assistant' ? messages.slice(0, -1) : messages;
  if (!asked.some(({ role }) => role === 'user')) return undefined;
  return { prompt: { kind: 'messages', messages: asked }, ...worked };
}
