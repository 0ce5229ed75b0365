import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { copyTinyTokenizer, makeTinyR1, tinyQwenFolder } from '@stillhouse/testing';
import { type ChatMessage, openTokenizer, type Tokenizer } from '@stillhouse/tokenizer';
import { afterAll, test } from 'vitest';
import type { RowContent } from '../read/row-content.ts';
import { checkMasks } from '../testing/mask-vectors.ts';
import { type EncodedRow, type EncodeOptions, encodeRow } from './encode-row.ts';
import { summariseRows } from './row-summary.ts';

const scratch = mkdtempSync(join(tmpdir(), 'encode-row-'));
afterAll(() => rmSync(scratch, { recursive: true }));

const qwen = await openTokenizer(tinyQwenFolder);
const r1 = await openTokenizer(makeTinyR1(join(scratch, 'r1'), 'r1-distill-qwen'));
const firstR1 = await openTokenizer(makeTinyR1(join(scratch, 'r1-gguf'), 'r1-distill-qwen-gguf'));

const encode = (content: RowContent, tokenizer: Tokenizer | null, options: Partial<EncodeOptions> = {}): EncodedRow =>
  encodeRow({ id: 'row', line: 7, metadata: { task: 'maths' }, content }, tokenizer, { where: 'data', ...options });

const conversation = (...messages: readonly ChatMessage[]) => ({ form: 'messages', messages }) as const;
const user = (content: string) => ({ role: 'user', content });
const assistant = (content: string) => ({ role: 'assistant', content });

/** The row's text with each run of targets in brackets. */
function show(tokenizer: Tokenizer, { inputIds, lossMask }: EncodedRow): string {
  let [text, from] = ['', 0];
  for (let at = 1; at <= inputIds.length; at++) {
    if (at < inputIds.length && lossMask[at] === lossMask[from]) continue;
    const run = tokenizer.decode(inputIds.slice(from, at));
    text += lossMask[from] === 1 ? `[${run}]` : run;
    from = at;
  }
  return text;
}

test("conversations have transformers' ids and assistant masks", () => checkMasks(qwen, 'tiny-bpe'));

test('a tool call is a target, what the tool says is not', () => {
  const call = {
    role: 'assistant',
    content: '',
    tool_calls: [{ type: 'function', function: { name: 'add', arguments: { a: 1 } } }],
  };
  const row = encode(
    conversation({ role: 'system', content: 's' }, user('q'), call, { role: 'tool', content: '2' }, assistant('two')),
    qwen,
  );
  assert.equal(
    show(qwen, row),
    '<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n' +
      '[<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>]\n' +
      '<|im_start|>user\n<tool_response>\n2\n</tool_response><|im_end|>\n<|im_start|>assistant\n[two<|im_end|>]\n',
  );
});

test('tools reach the template', () => {
  const tools = [{ type: 'function', function: { name: 'weather' } }];
  const row = encode({ ...conversation(user('q'), assistant('a')), tools }, qwen);
  assert.match(show(qwen, row), /\{"type": "function", "function": \{"name": "weather"\}\}.*\[a<\|im_end\|>\]\n$/s);
});

test("R1's generation prompt opens a thought, its turns do not: the turn is a target without its header", () => {
  assert.equal(
    show(r1, encode(conversation(user('q'), assistant('<b>4')), r1)),
    '<｜begin▁of▁sentence｜><｜User｜>q<｜Assistant｜>[<b>4<｜end▁of▁sentence｜>]',
  );
  assert.equal(
    show(r1, encode(conversation(user('q'), assistant('4'), user('r'), assistant('5')), r1)),
    '<｜begin▁of▁sentence｜><｜User｜>q<｜Assistant｜>[4<｜end▁of▁sentence｜>]<｜User｜>r<｜Assistant｜>[5<｜end▁of▁sentence｜>]',
  );
  assert.equal(
    show(firstR1, encode(conversation(user('q'), assistant('4')), firstR1)),
    '<｜begin▁of▁sentence｜><｜User｜>q<｜Assistant｜>[4<｜end▁of▁sentence｜>]',
  );
});

test('a turn whose thinking the template drops is refused, last or not', () => {
  const thinking = assistant('<think>\nhm\n</think>\n\n4');
  for (const messages of [
    [user('q'), thinking],
    [user('q'), thinking, user('r'), assistant('5')],
  ]) {
    assert.throws(() => encode(conversation(...messages), r1), {
      code: 'ROW_TEMPLATE_REWRITES',
      message:
        'data, line 7, row "row", messages[1]: the chat template rewrites this assistant turn: it does not ' +
        'show its content ' +
        'as it was written. To learn the content with its thinking, write the row as prompt and response.',
    });
  }
});

test('a template that shows a turn otherwise once others follow is refused for that row only', async () => {
  // As Qwen3 does: the thought stays in the last turn only.
  const template =
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}" +
    "{%- if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}{% else %}{{ " +
    'm.content }}{% endif %}' +
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
  const tokenizer = await openTokenizer(copyTinyTokenizer(join(scratch, 'last'), { 'chat_template.jinja': template }));
  const thinking = assistant('<think>hm</think>4');
  assert.match(
    show(tokenizer, encode(conversation(user('q'), thinking), tokenizer)),
    /\[<think>hm<\/think>4<\|im_end\|>\]\n$/,
  );
  assert.match(
    show(tokenizer, encode(conversation(user('q'), assistant('3'), user('r'), thinking), tokenizer)),
    /\[3<\|im_end\|>\].*\[<think>hm<\/think>4<\|im_end\|>\]\n$/s,
  );
  assert.throws(() => encode(conversation(user('q'), thinking, user('r'), assistant('5')), tokenizer), {
    code: 'ROW_TEMPLATE_REWRITES',
    message: /messages\[1\].*otherwise once other turns follow.*one row of each assistant turn/,
  });
});

test('a template that puts the last turn first is refused', async () => {
  const template = '{% for m in messages | reverse %}{{ m.role }}: {{ m.content }};{% endfor %}';
  const tokenizer = await openTokenizer(
    copyTinyTokenizer(join(scratch, 'reverse'), { 'chat_template.jinja': template }),
  );
  assert.throws(() => encode(conversation(user('q'), assistant('4'), user('x')), tokenizer), {
    code: 'ROW_TEMPLATE_REWRITES',
    message: /otherwise once other turns follow/,
  });
});

test('prompt and response are encoded apart, EOS is the end of the response', () => {
  const row = encode({ form: 'exchange', prompt: 'Hello\n', response: '\nworld' }, qwen);
  assert.deepEqual([...row.inputIds], [...qwen.encode('Hello\n'), ...qwen.encode('\nworld'), 2002]);
  assert.equal(show(qwen, row), 'Hello\n[\nworld<|im_end|>]');
  assert.equal(show(qwen, encode({ form: 'exchange', prompt: 'p', response: 'r<|im_end|>' }, qwen)), 'p[r<|im_end|>]');
  assert.equal(show(qwen, encode({ form: 'exchange', prompt: 'p', response: '' }, qwen)), 'p[<|im_end|>]');
  assert.equal(show(qwen, encode({ form: 'exchange', prompt: '', response: 'A B' }, qwen)), 'A[ B<|im_end|>]');
  assert.equal(row.task, 'maths');
});

test('of a text all but the first token is target, EOS at its end once', () => {
  assert.equal(show(qwen, encode({ form: 'text', text: 'A B c' }, qwen)), 'A[ B c<|im_end|>]');
  assert.equal(show(qwen, encode({ form: 'text', text: 'A B<|im_end|>' }, qwen)), 'A[ B<|im_end|>]');
});

test('ids are taken as they are, without a tokenizer', () => {
  const content = { form: 'ids', inputIds: Int32Array.of(5, 6, 7), lossMask: Uint8Array.of(0, 0, 1) } as const;
  const row = encode(content, null, { vocabSize: 8 });
  assert.deepEqual(
    [[...row.inputIds], [...row.lossMask]],
    [
      [5, 6, 7],
      [0, 0, 1],
    ],
  );
  assert.throws(() => encode(content, null, { vocabSize: 7 }), {
    code: 'TOKEN_ID_OUT_OF_RANGE',
    message: /^data, line 7, row "row": token 2 is not in the model's vocabulary; expected ids below 7, got 7\./,
  });
});

test('maxLength cuts rows, the context refuses them', async () => {
  const text = { form: 'text', text: 'Hello world, Hello world, Hello world' } as const;
  const length = encode(text, qwen).inputIds.length;
  const cut = encode(text, qwen, { maxLength: 5, contextLength: 5 });
  assert.deepEqual([cut.inputIds.length, cut.lossMask.length, cut.untruncatedLength], [5, 5, length]);
  assert.equal(encode(text, qwen, { maxLength: length, contextLength: length }).inputIds.length, length);
  for (const options of [{ contextLength: length - 1 }, { contextLength: length - 1, maxLength: length }]) {
    assert.throws(() => encode(text, qwen, options), {
      code: 'ROW_TOO_LONG',
      message:
        `data, line 7, row "row": the row is longer than the model's context; expected at most ${length - 1} tokens, ` +
        `got ${length}. Shorten the row, or cut all rows with --max-length ${length - 1}.`,
    });
  }
  assert.throws(() => encode({ form: 'exchange', prompt: 'Hello world', response: 'r' }, qwen, { maxLength: 2 }), {
    code: 'ROW_NO_TARGET',
    message: /cut to 2 tokens, the row has none to learn.*Raise --max-length/,
  });
  assert.throws(() => encode({ form: 'text', text: '' }, qwen), {
    code: 'ROW_NO_TARGET',
    message: /no token to learn/,
  });
});

test('what is missing is named with the row', async () => {
  const bare = await openTokenizer(copyTinyTokenizer(join(scratch, 'bare'), { 'tokenizer_config.json': {} }));
  assert.throws(() => encode({ form: 'text', text: 'x' }, bare), {
    code: 'EOS_MISSING',
    message: /^data, line 7, row "row"/,
  });
  const { chatTemplate: _, ...plain } = qwen;
  assert.throws(() => encode(conversation(user('q'), assistant('a')), plain), { code: 'CHAT_TEMPLATE_MISSING' });
  assert.throws(() => encode({ form: 'text', text: 'x' }, null), {
    code: 'TOKENIZER_REQUIRED',
    message: /tokenizer\.json/,
  });
  assert.throws(() => encode({ form: 'text', text: 'x\ud83d' }, qwen), {
    code: 'TEXT_NOT_UNICODE',
    message: /^data, line 7/,
  });
  const strict = copyTinyTokenizer(join(scratch, 'strict'), { 'chat_template.jinja': "{{ raise_exception('no') }}" });
  const refusing = await openTokenizer(strict);
  assert.throws(() => encode(conversation(user('q'), assistant('a')), refusing), {
    code: 'CHAT_TEMPLATE_FAILED',
    message: /^data, line 7, row "row": the chat template refuses the conversation \(no\)/,
  });
});

test('a summary counts rows, tokens and targets', async () => {
  const rows = ['Hello world, Hello', 'ab', 'a b c d e f g h'].map((text) =>
    encode({ form: 'text', text }, qwen, { maxLength: 6 }),
  );
  assert.deepEqual(await summariseRows(rows), {
    rowCount: 3,
    tokenCount: rows.reduce((sum, { inputIds }) => sum + inputIds.length, 0),
    targetCount: rows.reduce((sum, { inputIds }) => sum + inputIds.length - 1, 0),
    truncatedCount: rows.filter(({ untruncatedLength }) => untruncatedLength > 6).length,
    longest: { id: 'row', line: 7, length: 6 },
  });
  assert.deepEqual(await summariseRows([]), { rowCount: 0, tokenCount: 0, targetCount: 0, truncatedCount: 0 });
});
