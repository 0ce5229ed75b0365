import { createHash } from 'node:crypto';
import { access, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { StillhouseError } from '@stillhouse/errors';
import type { TemplateSources } from './chat-template.ts';

export interface TokenizerFile {
  readonly name: string;
  readonly path: string;
}

/** What a Hugging Face folder says about its tokenizer, parsed but not yet understood. */
export interface TokenizerFolder {
  /** The tokenizer's files that are there, by name. */
  readonly files: readonly TokenizerFile[];
  readonly tokenizerJson: JsonObject;
  readonly tokenizerJsonSha256: string;
  readonly config: JsonObject;
  /** `bos_token`, `eos_token`, `pad_token`, `unk_token` and so on, where they are set. */
  readonly specialTokens: Readonly<Record<string, string>>;
  readonly templates: TemplateSources | undefined;
}

export type JsonObject = Readonly<Record<string, unknown>>;

const MAIN_FILE = 'tokenizer.json';
const FILE_NAMES = [
  MAIN_FILE,
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'chat_template.jinja',
  'chat_template.json',
  'vocab.json',
  'merges.txt',
] as const;

const SPECIAL_TOKEN_KEYS = ['bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask'].map((name) => `${name}_token`);

/** Whether `folder` has a tokenizer that {@link openTokenizer} would try to open. */
export async function hasTokenizer(folder: string): Promise<boolean> {
  return isThere(join(folder, MAIN_FILE));
}

const isThere = (path: string) =>
  access(path).then(
    () => true,
    () => false,
  );

/** @throws StillhouseError TOKENIZER_MISSING, TOKENIZER_CORRUPT, TOKENIZER_NOT_READABLE */
export async function readTokenizerFolder(folder: string): Promise<TokenizerFolder> {
  const present = await Promise.all(FILE_NAMES.map(async (name) => (await isThere(join(folder, name))) && name));
  const names = present.filter((name) => name !== false);
  if (!names.includes(MAIN_FILE)) {
    const isSlow = names.includes('vocab.json');
    throw new StillhouseError({
      code: 'TOKENIZER_MISSING',
      where: folder,
      problem: isSlow ? 'there is no tokenizer.json, only a vocab.json' : 'there is no tokenizer.json',
      remedy: isSlow
        ? "Save it in today's form: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        : 'Name a Hugging Face model folder with its tokenizer files',
    });
  }
  const mainBytes = await readBytes(join(folder, MAIN_FILE));
  const readOptional = async (name: (typeof FILE_NAMES)[number]) =>
    names.includes(name) ? parseObject(await readBytes(join(folder, name)), join(folder, name)) : {};
  const config = await readOptional('tokenizer_config.json');
  const jinja = names.includes('chat_template.jinja')
    ? (await readBytes(join(folder, 'chat_template.jinja'))).toString()
    : undefined;
  const templates = jinja ?? (await readOptional('chat_template.json')).chat_template ?? config.chat_template;
  return {
    files: names.map((name) => ({ name, path: join(folder, name) })),
    tokenizerJson: parseObject(mainBytes, join(folder, MAIN_FILE)),
    tokenizerJsonSha256: createHash('sha256').update(mainBytes).digest('hex'),
    config,
    specialTokens: readSpecialTokens(await readOptional('special_tokens_map.json'), config),
    templates: readTemplates(templates, folder),
  };
}

async function readBytes(path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (cause) {
    const problem = `cannot be read (${(cause as NodeJS.ErrnoException).code ?? String(cause)})`;
    throw new StillhouseError({ code: 'TOKENIZER_NOT_READABLE', where: path, problem, cause });
  }
}

function parseObject(bytes: Buffer, path: string): JsonObject {
  let value: unknown;
  try {
    value = JSON.parse(bytes.toString('utf8'));
  } catch (cause) {
    const problem = `not valid JSON (${(cause as Error).message})`;
    throw new StillhouseError({
      code: 'TOKENIZER_CORRUPT',
      where: path,
      problem,
      remedy: 'Fetch the file again',
      cause,
    });
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new StillhouseError({ code: 'TOKENIZER_CORRUPT', where: path, problem: 'not a JSON object' });
  }
  return value as JsonObject;
}

/** A special token is written as its text or as an object with a `content`. The config has the last word. */
function readSpecialTokens(map: JsonObject, config: JsonObject): Readonly<Record<string, string>> {
  const tokens: Record<string, string> = {};
  for (const key of SPECIAL_TOKEN_KEYS) {
    const value = key in config ? config[key] : map[key];
    const text = typeof value === 'object' && value !== null ? (value as JsonObject).content : value;
    if (typeof text === 'string') tokens[key] = text;
  }
  return tokens;
}

function readTemplates(value: unknown, folder: string): TemplateSources | undefined {
  if (value === undefined || value === null) return undefined;
  if (typeof value === 'string') return { default: value };
  const entries = Array.isArray(value) ? value.map((entry: JsonObject) => [entry?.name, entry?.template]) : [];
  if (entries.length === 0 || !entries.flat().every((part) => typeof part === 'string')) {
    throw new StillhouseError({
      code: 'TOKENIZER_CORRUPT',
      where: folder,
      problem: 'chat_template is neither a text nor a list of named templates',
    });
  }
  return Object.fromEntries(entries) as TemplateSources;
}
