import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, test } from 'vitest';
import { readDataRows } from './data-rows.ts';
import type { DataRow } from './row-content.ts';

const scratch = mkdtempSync(join(tmpdir(), 'data-rows-'));
afterAll(() => rmSync(scratch, { recursive: true }));
let files = 0;

function writeData(content: string | Uint8Array): string {
  const path = join(scratch, `${++files}.jsonl`);
  writeFileSync(path, content);
  return path;
}

async function readAll(content: string | Uint8Array, limit?: number): Promise<readonly DataRow[]> {
  const rows: DataRow[] = [];
  for await (const row of readDataRows(writeData(content), limit === undefined ? {} : { limit })) rows.push(row);
  return rows;
}

const toLines = (rows: readonly object[]) => rows.map((row) => `${JSON.stringify(row)}\n`).join('');
const rejects = (content: string | Uint8Array, code: string, message: RegExp) =>
  assert.rejects(readAll(content), { code, message });

test('the four forms are read, with what they say about themselves', async () => {
  const messages = [
    { role: 'user', content: 'q' },
    { role: 'assistant', content: 'a' },
  ];
  const rows = await readAll(
    toLines([
      { id: 'one', task: 'maths', split: 'train', answer: 4, source: 'gsm8k', messages, other: 1 },
      { id: 2, prompt: 'p', response: '' },
      { text: 't', id: null, prompt: null },
      { input_ids: [5, 6, 7], loss_mask: [0, 0, 1] },
    ]),
  );
  assert.deepEqual(rows[0], {
    id: 'one',
    line: 1,
    metadata: { task: 'maths', split: 'train', answer: '4', source: 'gsm8k' },
    content: { form: 'messages', messages },
  });
  assert.equal(rows[1]!.id, '2');
  assert.deepEqual(rows[1]!.content, { form: 'exchange', prompt: 'p', response: '' });
  assert.deepEqual(rows[2]!.content, { form: 'text', text: 't' });
  assert.deepEqual(rows[3]!.content, {
    form: 'ids',
    inputIds: Int32Array.of(5, 6, 7),
    lossMask: Uint8Array.of(0, 0, 1),
  });
});

test("GSM8K's own line is a conversation with its result", async () => {
  const messages = [
    { role: 'user', content: 'How many?' },
    { role: 'assistant', content: '3*4=12.\n#### 1,012 ' },
  ];
  const [row, told, prose] = await readAll(
    toLines([
      { question: 'How many?', answer: '3*4=12.\n#### 1,012 ' },
      { id: 7, task: 'sums', split: 'test', question: 'How many?', answer: 12 },
      { text: 't', question: 'How many?', answer: '#### 12' },
    ]),
  );
  assert.deepEqual(row!.metadata, { task: 'math', answer: '1,012' });
  assert.deepEqual(row!.content, { form: 'messages', messages });
  assert.match(row!.id, /^[0-9a-f]{16}$/);
  assert.deepEqual([told!.id, told!.metadata], ['7', { task: 'sums', split: 'test', answer: '12' }]);
  assert.deepEqual([prose!.content, prose!.metadata], [{ form: 'text', text: 't' }, { answer: '#### 12' }]);
});

test('an id is derived from the content, whatever its place and the order of its keys', async () => {
  const [first, second] = await readAll('{"text":"a","task":"x"}\n{"text":"b"}\n');
  const [other, again] = await readAll('{"text":"b"}\n{"task":"x","text":"a"}\n');
  assert.match(first!.id, /^[0-9a-f]{16}$/);
  assert.deepEqual([again!.id, other!.id], [first!.id, second!.id]);
  const equal = await readAll('{"text":"b"}\n{"text":"b"}\n{"text":"b"}\n');
  assert.deepEqual(
    equal.map(({ id }) => id),
    [second!.id, `${second!.id}-2`, `${second!.id}-3`],
  );
});

test('lines are those of the file: CRLF, byte order mark, blank lines, no end of line, U+2028 in a text', async () => {
  const rows = await readAll('\uFEFF{"text":"a"}\r\n\r\n   \n{"text":"b\u2028c\u0085"}');
  assert.deepEqual(
    rows.map(({ line, content }) => [line, content]),
    [
      [1, { form: 'text', text: 'a' }],
      [4, { form: 'text', text: 'b\u2028c\u0085' }],
    ],
  );
});

test('a line longer than many chunks is one line', async () => {
  const text = 'é'.repeat(700_000);
  const rows = await readAll(toLines([{ text }, { text: 'next' }]));
  assert.deepEqual(
    rows.map(({ content }) => content),
    [
      { form: 'text', text },
      { form: 'text', text: 'next' },
    ],
  );
});

test('with a limit, what follows is not looked at', async () => {
  assert.equal((await readAll('{"text":"a"}\n{"text":"b"}\nnot json\n', 2)).length, 2);
  await rejects('{"text":"a"}\n{"text":"b"}\nnot json\n', 'DATA_NOT_JSON', /\.jsonl, line 3: not valid JSON/);
});

test('a file that cannot be read, or holds nothing, is refused', async () => {
  const read = async (path: string) => {
    for await (const _ of readDataRows(path));
  };
  await assert.rejects(read(join(scratch, 'none')), {
    code: 'DATA_NOT_READABLE',
    message: /none: there is no such file/,
  });
  await assert.rejects(read(scratch), { code: 'DATA_NOT_READABLE', message: /EISDIR/ });
  await rejects('', 'DATA_EMPTY', /holds no rows; expected one JSON object a line/);
  await rejects('\n \n', 'DATA_EMPTY', /holds no rows/);
  await rejects(
    Buffer.concat([Buffer.from('{"text":"'), Uint8Array.of(0xff), Buffer.from('"}')]),
    'DATA_NOT_UTF8',
    /line 1/,
  );
});

test('a line that is no row says so with its number', async () => {
  await rejects('{"text":"a"}\n{"text":"b"', 'DATA_NOT_JSON', /line 2: not valid JSON/);
  await rejects('{"text":"a"}\n\n[1]\n', 'ROW_FORM', /line 3: not an object.*got a list/);
  await rejects('{"question":"a","solution":"b"}', 'ROW_FORM', /no known form.*got the keys question, solution/);
  await rejects('{"prompt":"a"}', 'ROW_FORM', /no known form/);
  await rejects('{"input_ids":[1,2]}', 'ROW_FORM', /no known form/);
  await rejects('{}', 'ROW_FORM', /the keys \(none\)/);
  await rejects('{"text":"a","prompt":"b","response":"c"}', 'ROW_FORM', /several forms: prompt and response; text/);
});

test('a value of the wrong type is named', async () => {
  const cases: readonly (readonly [object, RegExp])[] = [
    [{ text: 3 }, /line 1: text is of the wrong type; expected a text, got 3/],
    [{ prompt: 'a', response: ['b'] }, /response.*got a list/],
    [{ question: 5, answer: 'b' }, /question.*got 5/],
    [{ text: 'a', id: '' }, /id is of the wrong type/],
    [{ text: 'a', id: true }, /id.*a text or a number, got true/],
    [{ text: 'a', task: 1 }, /task/],
    [{ text: 'a', answer: {} }, /answer.*got an object/],
    [{ messages: 'hi' }, /messages is of/],
    [{ messages: [] }, /messages.*an empty list/],
    [{ messages: ['hi'] }, /messages\[0\]/],
    [{ messages: [{ content: 'x' }] }, /messages\[0\]\.role.*got nothing/],
    [{ messages: [{ role: 'user', content: [{ type: 'text', text: 'x' }] }] }, /messages\[0\]\.content.*got a list/],
    [{ messages: [{ role: 'assistant', content: null }] }, /messages\[0\]\.content.*got null/],
    [{ messages: [{ role: 'assistant', content: 'x' }], tools: ['f'] }, /tools/],
    [{ input_ids: [], loss_mask: [] }, /input_ids.*an empty list/],
    [{ input_ids: [1, 2.5], loss_mask: [0, 1] }, /input_ids\[1\].*got 2\.5/],
    [{ input_ids: [1, -1], loss_mask: [0, 1] }, /input_ids\[1\].*got -1/],
    [{ input_ids: [1, 2 ** 31], loss_mask: [0, 1] }, /input_ids\[1\]/],
    [{ input_ids: [1, 2], loss_mask: 'x' }, /loss_mask is of/],
    [{ input_ids: [1, 2], loss_mask: [0, 2] }, /loss_mask\[1\].*expected 0 or 1, got 2/],
  ];
  for (const [row, message] of cases) await rejects(toLines([row]), 'ROW_TYPE', message);
});

test('masks that cannot be are refused', async () => {
  const row = (loss_mask: readonly number[]) => toLines([{ input_ids: [1, 2, 3], loss_mask }]);
  await rejects(row([0, 1]), 'ROW_LOSS_MASK', /not as long as input_ids; expected 3 entries, one a token, got 2/);
  await rejects(row([1, 1, 1]), 'ROW_LOSS_MASK', /nothing predicts the first token/);
  await rejects(row([0, 0, 0]), 'ROW_LOSS_MASK', /no 1/);
});

test('an id twice and a conversation without an answer are refused', async () => {
  await rejects(
    toLines([{ id: 'a', text: 'x' }, { text: 'y' }, { id: 'a', text: 'z' }]),
    'ROW_ID_DUPLICATE',
    /line 3: the id "a" is that of line 1 already/,
  );
  await rejects(toLines([{ messages: [{ role: 'user', content: 'q' }] }]), 'ROW_NO_ASSISTANT', /got the roles user/);
});
