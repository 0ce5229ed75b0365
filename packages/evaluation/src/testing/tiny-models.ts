import { cp, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

export const GOLDEN = new URL('../../../../test/golden/', import.meta.url).pathname;
export const VOCAB_SIZE = 512;

/** Bytes that stand for themselves in byte-level BPE; the others are moved up from U+0100 on (Radford et al. 2019). */
function byteAlphabet(): readonly string[] {
  let moved = 0;
  return Array.from({ length: 256 }, (_, byte) => {
    const standsForItself =
      (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);
    return String.fromCodePoint(standsForItself ? byte : 0x100 + moved++);
  });
}

export interface TinyTokenizerOptions {
  /** Rendered as `<role>content`, then `<assistant>`. Default true. */
  readonly hasTemplate?: boolean;
  /** What an id means instead. */
  readonly rename?: Readonly<Record<number, string>>;
}

/** A tokenizer of 512 ids: one for each byte, then ids 256 to 511 that are written as their own number and a space. */
export async function writeTinyTokenizer(
  folder: string,
  { hasTemplate = true, rename = {} }: TinyTokenizerOptions = {},
): Promise<void> {
  const tokens = [...byteAlphabet(), ...Array.from({ length: 256 }, (_, i) => `${256 + i}\u0120`)];
  const vocab = Object.fromEntries(tokens.map((token, id) => [rename[id] ?? token, id]));
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true };
  const tokenizer = {
    version: '1.0',
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: null,
    decoder: byteLevel,
    model: { type: 'BPE', vocab, merges: [] },
  };
  await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(tokenizer));
  const template =
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}" +
    '{% if add_generation_prompt %}<assistant>{% endif %}';
  await writeFile(
    join(folder, 'tokenizer_config.json'),
    JSON.stringify(hasTemplate ? { chat_template: template } : {}),
  );
}

/** A golden model with the tiny tokenizer, in `folder`; `config` overrides keys of its config.json. */
export async function makeTinyModel(
  folder: string,
  name: 'qwen2-tiny' | 'qwen2-tiny-untied' | 'llama-tiny',
  options: {
    readonly config?: Readonly<Record<string, unknown>>;
    readonly tokenizer?: TinyTokenizerOptions | null;
  } = {},
): Promise<string> {
  await cp(join(GOLDEN, name, 'model.safetensors'), join(folder, 'model.safetensors'));
  const config = JSON.parse(await readFile(join(GOLDEN, name, 'config.json'), 'utf8'));
  await writeFile(join(folder, 'config.json'), JSON.stringify({ ...config, ...options.config }));
  if (options.tokenizer !== null) await writeTinyTokenizer(folder, options.tokenizer);
  return folder;
}
