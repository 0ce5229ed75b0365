import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { isStillhouseError } from '@stillhouse/errors';
import { afterAll, beforeAll, test } from 'vitest';
import { readQuestionFile } from './question-file.ts';

let folder = '';
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'questions-'));
});
afterAll(() => rm(folder, { recursive: true }));

async function writeLines(...lines: readonly unknown[]): Promise<string> {
  const path = join(folder, 'questions.jsonl');
  const texts = lines.map((line) => (typeof line === 'string' ? line : JSON.stringify(line)));
  await writeFile(path, texts.join('\n'));
  return path;
}

test('the three forms are read, each with its prompt and final answer', async () => {
  const user = { role: 'user', content: 'What is 2+3?' };
  const path = await writeLines(
    { question: 'How many?', answer: 'She has 3*4=<<3*4=12>>12.\n#### 1,012' },
    '',
    { id: 'distil-1', task: 'arithmetic', prompt: 'How many?\n', response: '3*4=12. #### 12', answer: '12' },
    { prompt: 'How many?\n', response: '3*4=12. #### 12' },
    { id: 7, messages: [user, { role: 'assistant', content: '2+3=5\n#### 5' }] },
    { messages: [{ role: 'system', content: 'Be brief' }, user], answer: 5 },
    { prompt: 'Which one?', answer: '(C)' },
  );
  assert.deepEqual(await readQuestionFile(path), [
    { id: 'line-1', prompt: { kind: 'question', text: 'How many?' }, answer: '1012' },
    { id: 'distil-1', prompt: { kind: 'text', text: 'How many?\n' }, answer: '12', task: 'arithmetic' },
    { id: 'line-4', prompt: { kind: 'text', text: 'How many?\n' }, answer: '12' },
    { id: '7', prompt: { kind: 'messages', messages: [user] }, answer: '5' },
    {
      id: 'line-6',
      prompt: { kind: 'messages', messages: [{ role: 'system', content: 'Be brief' }, user] },
      answer: '5',
    },
    { id: 'line-7', prompt: { kind: 'text', text: 'Which one?' }, answer: 'c' },
  ]);
});

test('a limit stops reading, also before a broken line', async () => {
  const path = await writeLines({ prompt: 'a', answer: 1 }, { prompt: 'b', answer: 2 }, '{broken');
  const questions = await readQuestionFile(path, { limit: 2 });
  assert.deepEqual(
    questions.map(({ answer }) => answer),
    ['1', '2'],
  );
});

test('what cannot be used is refused with its line', async () => {
  const good = { prompt: 'a', answer: 1 };
  const cases: readonly (readonly [unknown, string])[] = [
    ['{"prompt": "a",', 'QUESTION_NOT_JSON'],
    ['[1]', 'QUESTION_FORM'],
    ['null', 'QUESTION_FORM'],
    [{ text: 'a' }, 'QUESTION_FORM'],
    [{ question: ' ', answer: '1' }, 'QUESTION_FORM'],
    [{ messages: [], answer: '1' }, 'QUESTION_FORM'],
    [{ messages: [{ role: 'assistant', content: '#### 1' }] }, 'QUESTION_FORM'],
    [{ messages: [{ role: 'user' }], answer: '1' }, 'QUESTION_FORM'],
    [{ prompt: 'a' }, 'QUESTION_ANSWER'],
    [{ prompt: 'a', answer: ' ' }, 'QUESTION_ANSWER'],
    [{ prompt: 'a', answer: null }, 'QUESTION_ANSWER'],
    [{ prompt: 'a', response: 'there are 12' }, 'QUESTION_ANSWER'],
  ];
  for (const [line, code] of cases) {
    const path = await writeLines(good, '', line);
    await assert.rejects(
      readQuestionFile(path),
      (error) => isStillhouseError(error, code) && error.report.where === `${path}, line 3`,
      JSON.stringify(line),
    );
  }
});

test('a missing file, a folder and a file without questions are refused', async () => {
  const isCode = (code: string) => (error: unknown) => isStillhouseError(error, code);
  await assert.rejects(readQuestionFile(join(folder, 'absent.jsonl')), isCode('QUESTIONS_NOT_READABLE'));
  await assert.rejects(readQuestionFile(folder), isCode('QUESTIONS_NOT_READABLE'));
  await assert.rejects(readQuestionFile(await writeLines('', ' ')), isCode('QUESTIONS_EMPTY'));
});

test('line separators inside strings and carriage returns end no line', async () => {
  const path = join(folder, 'separators.jsonl');
  await writeFile(
    path,
    '\uFEFF{"question":"one\u2028two\u2029three","answer":"#### 4"}\r\n{"question":"b","answer":"#### 5"}\r\n',
  );
  const questions = await readQuestionFile(path);
  assert.deepEqual(
    questions.map(({ prompt, answer }) => [prompt.kind === 'question' && prompt.text, answer]),
    [
      ['one\u2028two\u2029three', '4'],
      ['b', '5'],
    ],
  );
});
