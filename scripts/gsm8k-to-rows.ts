/**
 * Turns GSM8K's JSON lines ({"question", "answer"}) into data rows: the question as the user's turn, the worked answer
 * as the assistant's.
 *   node scripts/with-dependencies.js scripts/gsm8k-to-rows.ts train.jsonl rows.jsonl [--skip N] [--count N]
 *   [--split NAME]
 */
import { readFile, writeFile } from 'node:fs/promises';
import { parseArgs } from 'node:util';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    skip: { type: 'string', default: '0' },
    count: { type: 'string' },
    split: { type: 'string', default: 'train' },
  },
});
const [from, to] = positionals;
if (from === undefined || to === undefined) {
  console.error('usage: gsm8k-to-rows.ts GSM8K.jsonl ROWS.jsonl [--skip N] [--count N] [--split NAME]');
  process.exit(2);
}
const skip = Number(values.skip);
const lines = (await readFile(from, 'utf8')).split('\n').filter((line) => line !== '');
const rows = lines.slice(skip, values.count === undefined ? undefined : skip + Number(values.count)).map((line, i) => {
  const { question, answer } = JSON.parse(line) as { question: string; answer: string };
  const messages = [
    { role: 'user', content: question },
    { role: 'assistant', content: answer },
  ];
  return {
    id: `gsm8k-${values.split}-${skip + i}`,
    task: 'math',
    split: values.split,
    answer: answer.split('####').at(-1)!.trim(),
    messages,
  };
});
await writeFile(to, rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
