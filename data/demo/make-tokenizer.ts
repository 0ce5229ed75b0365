/**
 * Makes the demo's tokenizer from the generator: one id per word, digit and sign, a few hundred in all.
 *
 *     node --import tsx data/demo/make-tokenizer.ts
 *
 * A word or digit takes the space before it along, so that joining the tokens gives the text back. Text outside the
 * generator's vocabulary falls apart into single ASCII characters; anything else becomes `<|unknown|>`.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { streamProblems } from './make-problems.ts';
import { CONTAINERS, ITEMS, NAMES } from './words.ts';

export const TOKENIZER_FOLDER = fileURLToPath(new URL('tokenizer/', import.meta.url));

const EOS = '<|endoftext|>';
const PAD = '<|pad|>';
const UNKNOWN = '<|unknown|>';
const SPECIAL_TOKENS = [EOS, PAD, UNKNOWN];

/** Every pre-token is a whole token of the vocabulary; ids above 511 would mean that the templates have grown wordy. */
const LARGEST_VOCABULARY = 512;
const PATTERN = ' ?[A-Za-z]+| ?[0-9]| ?#+|[^A-Za-z0-9]';

/** Problems that are read for their words; the test reads others and finds no new ones. */
const SAMPLED_PROBLEMS = 20_000;

function collectWords(): readonly string[] {
  const words = new Set<string>();
  const collect = (text: string) => {
    for (const [word] of text.matchAll(new RegExp(PATTERN, 'g'))) words.add(word);
  };
  const stream = streamProblems('teacher-train', 0);
  for (let at = 0; at < SAMPLED_PROBLEMS; at++) {
    const { prompt, response } = stream.next().value.problem;
    collect(prompt + response);
  }
  for (const word of [...NAMES.map(({ name }) => name), ...ITEMS, ...CONTAINERS]) collect(` ${word}`);
  for (let digit = 0; digit < 10; digit++) collect(`${digit} ${digit}`);
  return [...words].filter((word) => word.length > 1).sort();
}

/** The files of the tokenizer folder by name. */
export function makeTokenizerFiles(): Readonly<Record<string, string>> {
  const characters = ['\n', ...Array.from({ length: 95 }, (_, at) => String.fromCharCode(32 + at))];
  const tokens = [...SPECIAL_TOKENS, ...characters, ...collectWords()];
  if (tokens.length > LARGEST_VOCABULARY)
    throw new Error(`${tokens.length} tokens are more than ${LARGEST_VOCABULARY}`);
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
  const tokenizer = {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: SPECIAL_TOKENS.map((content, id) => ({ id, content, ...flags })),
    normalizer: null,
    pre_tokenizer: { type: 'Split', pattern: { Regex: PATTERN }, behavior: 'Isolated', invert: false },
    post_processor: null,
    decoder: { type: 'Fuse' },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: UNKNOWN,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      // A whole word is found as it is, without merges to build it up.
      ignore_merges: true,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges: [],
    },
  };
  const config = {
    tokenizer_class: 'PreTrainedTokenizerFast',
    model_max_length: 256,
    clean_up_tokenization_spaces: false,
    add_bos_token: false,
    bos_token: null,
    eos_token: EOS,
    pad_token: PAD,
    unk_token: UNKNOWN,
    added_tokens_decoder: Object.fromEntries(SPECIAL_TOKENS.map((content, id) => [id, { content, ...flags }])),
  };
  const specialTokens = { eos_token: EOS, pad_token: PAD, unk_token: UNKNOWN };
  const print = (value: unknown) => `${JSON.stringify(value, null, 1)}\n`;
  return {
    'tokenizer.json': print(tokenizer),
    'tokenizer_config.json': print(config),
    'special_tokens_map.json': print(specialTokens),
  };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await mkdir(TOKENIZER_FOLDER, { recursive: true });
  for (const [name, content] of Object.entries(makeTokenizerFiles())) await writeFile(TOKENIZER_FOLDER + name, content);
}
