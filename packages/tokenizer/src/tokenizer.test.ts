import assert from 'node:assert/strict';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, test } from 'vitest';
import { hasTokenizer, openTokenizer } from './index.ts';
import {
  checkConversationIds,
  checkEncodings,
  type RenderingVectors,
  readVectors,
  vectorFolder,
} from './testing/vectors.ts';

const tinyFolder = fileURLToPath(new URL('tiny-bpe', vectorFolder));
const scratch = mkdtempSync(join(tmpdir(), 'tokenizer-'));
afterAll(() => rmSync(scratch, { recursive: true }));

/** A copy of the tiny tokenizer's folder with some files changed; null takes a file away. */
function makeFolder(name: string, changes: Readonly<Record<string, string | object | null>>): string {
  const folder = join(scratch, name);
  cpSync(tinyFolder, folder, { recursive: true });
  for (const [file, content] of Object.entries(changes)) {
    if (content === null) rmSync(join(folder, file));
    else writeFileSync(join(folder, file), typeof content === 'string' ? content : JSON.stringify(content));
  }
  return folder;
}

const readTiny = () => JSON.parse(readFileSync(join(tinyFolder, 'tokenizer.json'), 'utf8'));

test("encodes and decodes as transformers does with Qwen2's rules over a tiny vocabulary", async () => {
  const tokenizer = await openTokenizer(tinyFolder);
  const vectors = readVectors('tiny-bpe');
  checkEncodings(tokenizer, vectors);
  checkConversationIds(tokenizer, vectors, readVectors<RenderingVectors>('rendered-qwen2.5'));
});

for (const name of ['tiny-digits', 'tiny-digit-runs']) {
  test(`encodes and decodes as transformers does with SmolLM2's rules over a tiny vocabulary (${name})`, async () => {
    const vectors = readVectors(name);
    const changed = { ...readTiny(), normalizer: null, pre_tokenizer: vectors.preTokenizer };
    checkEncodings(await openTokenizer(makeFolder(name, { 'tokenizer.json': changed })), vectors);
  });
}

test('says what its ids are', async () => {
  const tokenizer = await openTokenizer(tinyFolder);
  assert.equal(tokenizer.realVocabSize, 2003);
  assert.equal(tokenizer.eosTokenId, 2002);
  assert.equal(tokenizer.padTokenId, 2000);
  assert.equal(tokenizer.bosTokenId, undefined);
  assert.equal(tokenizer.tokenOf(2001), '<|im_start|>');
  assert.equal(tokenizer.idOf('<|im_start|>'), 2001);
  assert.equal(tokenizer.tokenOf(2003), undefined);
  assert.equal(tokenizer.idOf('no such token'), undefined);
  assert.deepEqual(tokenizer.addedTokens[1], { id: 2001, content: '<|im_start|>', special: true });
  assert.deepEqual(
    tokenizer.files.map(({ name }) => name),
    ['tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja'],
  );
  assert.equal(tokenizer.decode([]), '');
  assert.equal(tokenizer.decode([2003, 2001, 99999]), '<|im_start|>');
});

test('the digest follows what decides ids, and nothing else', async () => {
  const digestOf = async (name: string, changes: Readonly<Record<string, string | object | null>>) =>
    (await openTokenizer(makeFolder(name, changes))).digest;
  const config = JSON.parse(readFileSync(join(tinyFolder, 'tokenizer_config.json'), 'utf8'));
  const digest = (await openTokenizer(tinyFolder)).digest;
  assert.equal(await digestOf('same', { 'tokenizer_config.json': { ...config, model_max_length: 1 } }), digest);
  const others = [
    await digestOf('eos', { 'tokenizer_config.json': { ...config, eos_token: '<|endoftext|>' } }),
    await digestOf('template', { 'chat_template.jinja': 'x' }),
    await digestOf('json', { 'tokenizer.json': { ...readTiny(), normalizer: null } }),
  ];
  assert.equal(new Set([digest, ...others]).size, 4);
});

test('a template may be in a file, in a JSON file or in the config, in this order', async () => {
  const render = async (name: string, changes: Readonly<Record<string, string | object | null>>) =>
    (await openTokenizer(makeFolder(name, changes))).chatTemplate?.render([{ role: 'user', content: 'x' }]);
  const files = {
    'chat_template.jinja': 'from jinja',
    'chat_template.json': { chat_template: 'from json' },
    'tokenizer_config.json': { chat_template: [{ name: 'default', template: 'from config' }] },
  };
  assert.equal(await render('t1', files), 'from jinja');
  assert.equal(await render('t2', { ...files, 'chat_template.jinja': null }), 'from json');
  const { 'chat_template.json': _, ...rest } = files;
  assert.equal(await render('t3', { ...rest, 'chat_template.jinja': null }), 'from config');
  assert.equal(await render('t4', { 'chat_template.jinja': null, 'tokenizer_config.json': null }), undefined);
});

test('special tokens may be objects, and come from special_tokens_map.json where the config has none', async () => {
  const tokenizer = await openTokenizer(
    makeFolder('map', {
      'tokenizer_config.json': { eos_token: { content: '<|im_end|>' }, pad_token: null },
      'special_tokens_map.json': { bos_token: '<|im_start|>', eos_token: '<|endoftext|>', pad_token: '<|im_end|>' },
    }),
  );
  assert.deepEqual([tokenizer.eosTokenId, tokenizer.bosTokenId, tokenizer.padTokenId], [2002, 2001, undefined]);
});

test('added tokens of the config join those of tokenizer.json', async () => {
  const extra = {
    '2001': { content: '<|im_start|>', special: false },
    '2003': { content: '<extra>', special: true },
  };
  const folder = makeFolder('added', { 'tokenizer_config.json': { added_tokens_decoder: extra } });
  const tokenizer = await openTokenizer(folder);
  assert.deepEqual([...tokenizer.encode('<extra>')], [2003]);
  assert.equal(tokenizer.realVocabSize, 2004);
  assert.equal(tokenizer.decode([2001, 2003], { skipSpecialTokens: true }), '<|im_start|>');
});

test('a folder that has no tokenizer, or a broken one, is refused by name', async () => {
  const empty = join(scratch, 'empty');
  mkdirSync(empty);
  assert.equal(await hasTokenizer(empty), false);
  assert.equal(await hasTokenizer(tinyFolder), true);
  const rejects = (folder: string, code: string, message: RegExp) =>
    assert.rejects(openTokenizer(folder), { code, message });
  await rejects(empty, 'TOKENIZER_MISSING', /empty: there is no tokenizer\.json\. Name a/);
  await rejects(join(scratch, 'nowhere'), 'TOKENIZER_MISSING', /nowhere/);
  const slow = makeFolder('slow', { 'tokenizer.json': null, 'vocab.json': '{}' });
  await rejects(slow, 'TOKENIZER_MISSING', /only a vocab\.json.*save_pretrained/);
  const cut = makeFolder('cut', { 'tokenizer.json': JSON.stringify(readTiny()).slice(0, 1000) });
  await rejects(cut, 'TOKENIZER_CORRUPT', /tokenizer\.json: not valid JSON/);
  await rejects(
    makeFolder('array', { 'tokenizer_config.json': '[]' }),
    'TOKENIZER_CORRUPT',
    /tokenizer_config\.json: not a JSON object/,
  );
  const badTemplate = makeFolder('bad-template', {
    'chat_template.jinja': null,
    'tokenizer_config.json': { chat_template: 3 },
  });
  await rejects(badTemplate, 'TOKENIZER_CORRUPT', /chat_template/);
  const noId = makeFolder('no-id', { 'tokenizer.json': { ...readTiny(), added_tokens: [{ content: 'x' }] } });
  await rejects(noId, 'TOKENIZER_CORRUPT', /lacks its content or its id/);
  await rejects(
    makeFolder('no-model', { 'tokenizer.json': {} }),
    'TOKENIZER_UNSUPPORTED',
    /tokenizer\.json cannot be used/,
  );
  const unknown = makeFolder('unknown', { 'tokenizer.json': { ...readTiny(), pre_tokenizer: { type: 'Nonesuch' } } });
  await rejects(unknown, 'TOKENIZER_UNSUPPORTED', /Nonesuch/);
  const word = { id: 2003, content: 'w', single_word: true };
  const words = makeFolder('words', { 'tokenizer.json': { ...readTiny(), added_tokens: [word] } });
  await rejects(words, 'TOKENIZER_UNSUPPORTED', /whole words/);
  const directory = makeFolder('directory', { 'tokenizer.json': null });
  mkdirSync(join(directory, 'tokenizer.json'));
  await rejects(directory, 'TOKENIZER_NOT_READABLE', /EISDIR/);
});

test('text that is no Unicode is refused, not replaced', async () => {
  const tokenizer = await openTokenizer(tinyFolder);
  assert.throws(() => tokenizer.encode('abc \ud83d def'), {
    code: 'TEXT_NOT_UNICODE',
    message: /character 4.*U\+D83D/,
  });
  assert.equal(tokenizer.decode(tokenizer.encode('abc (\ud83d\ude00)')).at(-1), ')');
});
