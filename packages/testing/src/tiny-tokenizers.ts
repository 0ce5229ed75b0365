import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const tokenizerFixtures = new URL('../../../test/tokenizer/', import.meta.url);

/** Qwen2's rules and its chat template over 2,000 tokens. */
export const tinyQwenFolder = fileURLToPath(new URL('tiny-bpe', tokenizerFixtures));

/** A copy of it in `folder`, with files changed. */
export function copyTinyTokenizer(folder: string, changes: Readonly<Record<string, object | string>>): string {
  cpSync(tinyQwenFolder, folder, { recursive: true });
  for (const [name, content] of Object.entries(changes)) {
    writeFileSync(join(folder, name), typeof content === 'string' ? content : JSON.stringify(content));
  }
  return folder;
}

/** The same vocabulary with R1-Distill's special tokens, and the template of that name in test/tokenizer/templates. */
export function makeTinyR1(folder: string, template: string): string {
  const base = JSON.parse(readFileSync(join(tinyQwenFolder, 'tokenizer.json'), 'utf8')) as object;
  const contents = [
    '<｜end▁of▁sentence｜>',
    '<｜User｜>',
    '<｜Assistant｜>',
    '<｜begin▁of▁sentence｜>',
    '<|EOT|>',
    '<think>',
    '</think>',
  ];
  const added_tokens = contents.map((content, index) => ({ id: 2000 + index, content, special: index % 3 === 0 }));
  return copyTinyTokenizer(folder, {
    'tokenizer.json': { ...base, added_tokens },
    'tokenizer_config.json': { bos_token: contents[3], eos_token: contents[0], pad_token: contents[0] },
    'chat_template.jinja': readFileSync(new URL(`templates/${template}.jinja`, tokenizerFixtures), 'utf8'),
  });
}
