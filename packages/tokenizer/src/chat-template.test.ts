import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { isStillhouseError } from '@stillhouse/errors';
import { test } from 'vitest';
import { createChatTemplate } from './chat-template.ts';
import { type RenderingVectors, readVectors, vectorFolder } from './testing/vectors.ts';

const hi = [{ role: 'user', content: 'hi' }];

for (const name of ['qwen2.5', 'qwen2.5-gguf', 'r1-distill-qwen', 'r1-distill-qwen-gguf', 'smollm2']) {
  test(`${name}: conversations render as transformers renders them`, () => {
    const source = readFileSync(new URL(`templates/${name}.jinja`, vectorFolder), 'utf8');
    const { specialTokens, conversations } = readVectors<RenderingVectors>(`rendered-${name}`);
    const template = createChatTemplate({ default: source }, specialTokens, name);
    assert.ok(conversations.length > 50);
    for (const { messages, tools, addGenerationPrompt, text, error } of conversations) {
      const render = () => template.render(messages, { addGenerationPrompt, ...(tools === null ? {} : { tools }) });
      if (text !== undefined) assert.equal(render(), text);
      else assert.throws(render, (thrown) => isStillhouseError(thrown, 'CHAT_TEMPLATE_FAILED'), error);
    }
  });
}

test('a template sees special tokens, the time and raise_exception', () => {
  const source =
    "{{ eos_token }} {{ strftime_now('%d %b %Y') }}{% if not messages %}{{ raise_exception('no') }}{% endif %}";
  const template = createChatTemplate({ default: source }, { eos_token: '<e>' }, 'x');
  assert.equal(template.render(hi, { now: new Date(2025, 2, 9) }), '<e> 09 Mar 2025');
});

test('range counts as in Python', () => {
  const source =
    '{% for i in range(2, 7, 2) %}{{ i }} {% endfor %}{% for i in range(3, 0, -1) %}{{ i }} {% endfor %}{{ ' +
    'range(2, 1) | length }}{{ range(3) | length }}';
  assert.equal(createChatTemplate({ default: source }, {}, 'x').render(hi), '2 4 6 3 2 1 03');
});

test('lines end as Jinja has them, and blocks take their line', () => {
  const source =
    '{% for m in messages %}\r\n  {% if true %}\r\n{{ m.content }}\r\n  {% endif %}\r\n{% endfor %}\r\nend\r\n';
  assert.equal(createChatTemplate({ default: source }, {}, 'x').render(hi), 'hi\nend');
});

test('reasoning is found under each of its names, and keys without a value are dropped', () => {
  const template = createChatTemplate(
    {
      default:
        '{{ messages[0].reasoning_content }}|{{ messages[0].thinking }}|{% if messages[0].content is defined ' +
        '%}content{% endif %}',
    },
    {},
    'x',
  );
  assert.equal(template.render([{ role: 'assistant', content: null, reasoning: 'r' }]), 'r|r|');
  assert.equal(template.render([{ role: 'assistant', content: '', thinking: 't' }]), 't|t|content');
});

test('a tool template serves conversations with tools', () => {
  const template = createChatTemplate({ default: 'plain', tool_use: 'tools' }, {}, 'x');
  assert.equal(template.render(hi), 'plain');
  assert.equal(template.render(hi, { tools: [] }), 'tools');
  assert.notEqual(template.sha256, createChatTemplate({ default: 'plain' }, {}, 'x').sha256);
});

test('what cannot be rendered is refused with its reason', () => {
  const failing = createChatTemplate({ default: "{{ raise_exception('roles must alternate') }}" }, {}, 'folder');
  assert.throws(() => failing.render(hi), {
    code: 'CHAT_TEMPLATE_FAILED',
    message: 'folder: the chat template refuses the conversation (roles must alternate).',
  });
  assert.throws(() => failing.render([]), { code: 'CHAT_TEMPLATE_FAILED', message: /empty/ });
  assert.throws(() => createChatTemplate({ other: 'x' }, {}, 'f').render(hi), { code: 'CHAT_TEMPLATE_FAILED' });
  assert.throws(() => createChatTemplate({ default: '{% if %}' }, {}, 'f').render(hi), {
    code: 'CHAT_TEMPLATE_CORRUPT',
  });
});
