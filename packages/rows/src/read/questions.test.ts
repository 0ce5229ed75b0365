import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { isStillhouseError } from '@stillhouse/errors';
import { afterAll, beforeAll, test } from 'vitest';
import { type Question, readQuestions } from './questions.ts';

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

async function readAll(path: string, limit?: number): Promise<readonly Question[]> {
  const questions: Question[] = [];
  for await (const question of readQuestions(path, limit === undefined ? {} : { limit })) questions.push(question);
  return questions;
}

test('the three forms are read, each with its prompt and what it names as its answer', async () => {
  const user = { role: 'user', content: 'What is 2+3?' };
  const path = await writeLines(
    { question: 'How many?', answer: '#### 1,012' },
    '',
    { id: 'distil-1', task: 'arithmetic', prompt: 'How many?\n', response: '3*4=12. #### 12', answer: '12' },
    { prompt: 'How many?\n', response: '3*4=12. #### 12' },
    { id: 7, messages: [user, { role: 'assistant', content: '2+3=5\n#### 5' }] },
    { messages: [{ role: 'system', content: 'Be brief' }, user], answer: 5 },
    { question: 'Which one?', prompt: 'p', answer: null },
  );
  const questions = await readAll(path);
  assert.deepEqual(
    questions.map(({ where }) => where),
    [1, 3, 4, 5, 6, 7].map((line) => `${path}, line ${line}`),
  );
  const worked = '3*4=12. #### 12';
  const how = { kind: 'text', text: 'How many?\n' };
  assert.deepEqual(
    questions.map(({ where, ...rest }) => rest),
    [
      { id: 'line-1', prompt: { kind: 'question', text: 'How many?' }, answer: '#### 1,012' },
      { id: 'distil-1', prompt: how, worked, answer: '12', task: 'arithmetic' },
      { id: 'line-4', prompt: how, worked },
      { id: '7', prompt: { kind: 'messages', messages: [user] }, worked: '2+3=5\n#### 5' },
      {
        id: 'line-6',
        prompt: { kind: 'messages', messages: [{ role: 'system', content: 'Be brief' }, user] },
        answer: '5',
      },
      { id: 'line-7', prompt: { kind: 'question', text: 'Which one?' } },
    ],
  );
});

test('a limit stops reading, also before a broken line', async () => {
  const path = await writeLines({ prompt: 'a', answer: 1 }, { prompt: 'b', answer: 2 }, '{broken');
  const questions = await readAll(path, 2);
  assert.deepEqual(
    questions.map(({ answer }) => answer),
    ['1', '2'],
  );
});

test('what cannot be used is refused with its line', async () => {
  const call = { role: 'assistant', tool_calls: [{}] };
  const cases: readonly (readonly [unknown, string])[] = [
    ['{"prompt": "a",', 'DATA_NOT_JSON'],
    ['[1]', 'ROW_FORM'],
    ['null', 'ROW_FORM'],
    [{ text: 'a' }, 'ROW_FORM'],
    [{ question: ' ', answer: '1' }, 'ROW_FORM'],
    [{ messages: [{ role: 'assistant', content: '#### 1' }] }, 'ROW_FORM'],
    [{ messages: [], answer: '1' }, 'ROW_TYPE'],
    [{ messages: [{ role: 'user' }], answer: '1' }, 'ROW_TYPE'],
    [{ messages: [{ role: 'user', content: 'a' }, call, { role: 'tool', content: '' }], answer: '1' }, 'ROW_TYPE'],
    [{ prompt: 'a', answer: ['1'] }, 'ROW_TYPE'],
    [{ id: 'first', prompt: 'a' }, 'ROW_ID_DUPLICATE'],
  ];
  for (const [line, code] of cases) {
    const path = await writeLines({ id: 'first', prompt: 'a', answer: 1 }, '', line);
    await assert.rejects(
      readAll(path),
      (error) => isStillhouseError(error, code) && error.report.where === `${path}, line 3`,
      JSON.stringify(line),
    );
  }
});

test('a file without questions is refused', async () => {
  await assert.rejects(readAll(await writeLines('', ' ')), { code: 'DATA_EMPTY', message: /holds no questions/ });
});
