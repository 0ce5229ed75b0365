import { createHash } from 'node:crypto';
import { Tokenizer as LibraryTokenizer } from '@huggingface/tokenizers';
import { StillhouseError } from '@stillhouse/errors';
import { type ChatTemplate, createChatTemplate } from './chat-template.ts';
import {
  dropUnknownBeforeMerging,
  type LibraryModel,
  type LibraryPreTokenizer,
  useUnicodeClasses,
} from './library-corrections.ts';
import { type JsonObject, readTokenizerFolder, type TokenizerFile, type TokenizerFolder } from './tokenizer-folder.ts';

/** A token that is found in text before anything else is done with it. */
export interface AddedToken {
  readonly id: number;
  readonly content: string;
  /** Left out by `decode` with `skipSpecialTokens`. */
  readonly special: boolean;
}

export interface Tokenizer {
  readonly folder: string;
  /**
   * [L] ids of the text alone, as `transformers` with `add_special_tokens=False`; special tokens written in the text
   * become their ids.
   * @throws StillhouseError TEXT_NOT_UNICODE for half a surrogate pair
   */
  encode(text: string): Int32Array;
  /** [L] ids as `transformers` gives them by default, with whatever special tokens its files say. */
  encodeWithSpecials(text: string): Int32Array;
  /** Text of the ids; ids without a token are left out, bytes that are no UTF-8 become U+FFFD. */
  decode(ids: ArrayLike<number>, options?: { readonly skipSpecialTokens?: boolean }): string;
  /** The id's string in the vocabulary (byte-level alphabet, so a space is `Ġ`); undefined where the id has none. */
  tokenOf(id: number): string | undefined;
  idOf(token: string): number | undefined;
  /** Largest id + 1, added tokens included; models pad their vocabulary beyond it. */
  readonly realVocabSize: number;
  readonly eosTokenId?: number;
  readonly bosTokenId?: number;
  readonly padTokenId?: number;
  readonly addedTokens: readonly AddedToken[];
  /** Absent where the folder has none. */
  readonly chatTemplate?: ChatTemplate;
  /** The files to carry along with a cache or a model. */
  readonly files: readonly TokenizerFile[];
  /** Lower-case hexadecimal sha256 over what decides ids: tokenizer.json, special tokens and chat template. */
  readonly digest: string;
}

/**
 * Opens the tokenizer of a Hugging Face folder: tokenizer.json, tokenizer_config.json and the chat template
 * (chat_template.jinja, chat_template.json or in the config).
 *
 * The ids are those of the pipeline in tokenizer.json, which is what `PreTrainedTokenizerFast` and transformers 4 give.
 * `AutoTokenizer` of transformers 5 rebuilds some classes instead and so loses parts: for SmolLM2 (`GPT2Tokenizer`)
 * the rule that splits digits off, which the model was trained with ("x  1" is x·ĠĠ·1 here and x·Ġ·Ġ·1 there).
 *
 * @throws StillhouseError TOKENIZER_MISSING, TOKENIZER_NOT_READABLE, TOKENIZER_CORRUPT, TOKENIZER_UNSUPPORTED
 */
export async function openTokenizer(folder: string): Promise<Tokenizer> {
  const contents = await readTokenizerFolder(folder);
  const addedTokens = readAddedTokens(contents, folder);
  const library = createLibraryTokenizer(contents, addedTokens, folder);
  const specialIds = new Set(addedTokens.filter(({ special }) => special).map(({ id }) => id));
  const cleanUp = contents.config.clean_up_tokenization_spaces === true;
  const idOf = (token: string | undefined) => (token === undefined ? undefined : library.token_to_id(token));
  const { specialTokens } = contents;
  const template =
    contents.templates === undefined ? undefined : createChatTemplate(contents.templates, specialTokens, folder);
  const named = {
    eosTokenId: idOf(specialTokens.eos_token),
    bosTokenId: idOf(specialTokens.bos_token),
    padTokenId: idOf(specialTokens.pad_token),
  };

  function toIds(text: string, addSpecialTokens: boolean): Int32Array {
    if (/\p{Surrogate}/u.test(text)) refuseText(folder, text);
    const { ids } = library.encode(text, { add_special_tokens: addSpecialTokens });
    return Int32Array.from(
      ids,
      (id: number | undefined) => id ?? refuse(folder, 'TOKENIZER_CORRUPT', 'a token of its own rules has no id'),
    );
  }

  return {
    folder,
    encode: (text) => toIds(text, false),
    encodeWithSpecials: (text) => toIds(text, true),
    decode: (ids, { skipSpecialTokens = false } = {}) => {
      const kept = Array.from(ids).filter(
        (id) => library.id_to_token(id) !== undefined && !(skipSpecialTokens && specialIds.has(id)),
      );
      return kept.length === 0 ? '' : library.decode(kept, { clean_up_tokenization_spaces: cleanUp });
    },
    tokenOf: (id) => library.id_to_token(id),
    idOf,
    realVocabSize: library.model.vocab.length,
    ...(Object.fromEntries(Object.entries(named).filter(([, id]) => id !== undefined)) as Pick<
      Tokenizer,
      'eosTokenId'
    >),
    addedTokens: addedTokens.map(({ id, content, special }) => ({ id, content, special })),
    ...(template === undefined ? {} : { chatTemplate: template }),
    files: contents.files,
    digest: createHash('sha256')
      .update(
        JSON.stringify([contents.tokenizerJsonSha256, Object.entries(specialTokens).sort(), template?.sha256 ?? null]),
      )
      .digest('hex'),
  };
}

/** The library's own type declarations do not resolve under NodeNext, so what is used of it is declared here. */
interface Library {
  readonly pre_tokenizer: LibraryPreTokenizer | null;
  readonly model: LibraryModel;
  encode(text: string, options: { add_special_tokens: boolean }): { readonly ids: readonly (number | undefined)[] };
  decode(ids: readonly number[], options: { clean_up_tokenization_spaces: boolean }): string;
  token_to_id(token: string): number | undefined;
  id_to_token(id: number): string | undefined;
}

type AddedTokenEntry = AddedToken & JsonObject;

/** Those of tokenizer.json, with what `added_tokens_decoder` in the config adds to or says otherwise about them. */
function readAddedTokens({ tokenizerJson, config }: TokenizerFolder, folder: string): readonly AddedTokenEntry[] {
  const byContent = new Map<unknown, JsonObject>();
  const listed = tokenizerJson.added_tokens;
  for (const token of Array.isArray(listed) ? (listed as JsonObject[]) : []) byContent.set(token.content, token);
  for (const [id, token] of Object.entries((config.added_tokens_decoder ?? {}) as Record<string, JsonObject>)) {
    byContent.set(token.content, { ...byContent.get(token.content), id: Number(id), ...token });
  }
  return [...byContent.values()].map((token) => {
    if (typeof token.content !== 'string' || !Number.isSafeInteger(token.id)) {
      refuse(folder, 'TOKENIZER_CORRUPT', `an added token lacks its content or its id: ${JSON.stringify(token)}`);
    }
    if (token.single_word === true) {
      refuse(
        folder,
        'TOKENIZER_UNSUPPORTED',
        `the added token ${JSON.stringify(token.content)} matches whole words only`,
      );
    }
    return { ...token, special: token.special === true } as AddedTokenEntry;
  });
}

function createLibraryTokenizer(
  { tokenizerJson, config }: TokenizerFolder,
  addedTokens: readonly AddedTokenEntry[],
  folder: string,
): Library {
  try {
    const library = new LibraryTokenizer({ ...tokenizerJson, added_tokens: addedTokens }, config) as Library;
    useUnicodeClasses(library.pre_tokenizer);
    dropUnknownBeforeMerging(library.model);
    return library;
  } catch (cause) {
    refuse(folder, 'TOKENIZER_UNSUPPORTED', `tokenizer.json cannot be used (${(cause as Error).message})`, cause);
  }
}

function refuse(folder: string, code: string, problem: string, cause?: unknown): never {
  throw new StillhouseError({ code, where: folder, problem, ...(cause === undefined ? {} : { cause }) });
}

function refuseText(folder: string, text: string): never {
  const at = text.search(/\p{Surrogate}/u);
  throw new StillhouseError({
    code: 'TEXT_NOT_UNICODE',
    where: folder,
    problem: `the text to encode holds half a surrogate pair at character ${at}`,
    expected: 'well-formed Unicode',
    got:
      `U+${text.charCodeAt(at).toString(16).toUpperCase()} in ` +
      `${JSON.stringify(text.slice(Math.max(0, at - 10), at + 10))}`,
    remedy: 'Replace it, for instance with U+FFFD',
  });
}
