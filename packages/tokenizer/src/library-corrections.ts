/**
 * GPT-2's pattern as `tokenizers` (Rust) reads it: white space is Unicode's White_Space, to which U+0085 belongs and
 * U+FEFF does not; JavaScript's `\s` has it the other way round.
 */
const BYTE_LEVEL_PATTERN =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;
/** Rust's `char::is_numeric` is Unicode's N, where JavaScript's `\d` is ASCII only. */
const SINGLE_DIGITS = /[^\p{N}]+|\p{N}/gu;
const DIGIT_RUNS = /[^\p{N}]+|\p{N}+/gu;

/** The part of the library's pre-tokenizers (0.2.0) that is looked at here. */
export interface LibraryPreTokenizer {
  readonly config?: { readonly type?: string; readonly individual_digits?: boolean };
  /** What it splits by, in `ByteLevel` and `Digits`. */
  pattern?: RegExp;
  /** The steps of a `Sequence`. */
  readonly tokenizers?: readonly (LibraryPreTokenizer | null)[];
}

/** Gives the library's pre-tokenizers the character classes of the Rust library that `transformers` runs on. */
export function useUnicodeClasses(preTokenizer: LibraryPreTokenizer | null): void {
  if (preTokenizer === null) return;
  preTokenizer.tokenizers?.forEach(useUnicodeClasses);
  const { config } = preTokenizer;
  if (config?.type === 'ByteLevel') preTokenizer.pattern = BYTE_LEVEL_PATTERN;
  if (config?.type === 'Digits') preTokenizer.pattern = config.individual_digits ? SINGLE_DIGITS : DIGIT_RUNS;
}

/** The part of the library's BPE model (0.2.0) that is looked at here. */
export interface LibraryModel {
  readonly vocab: readonly (string | undefined)[];
  readonly tokens_to_ids: ReadonlyMap<string, number>;
  readonly unk_token?: string | null;
  readonly byte_fallback?: boolean;
  /** Where the model is BPE. */
  bpe?(word: string): readonly string[];
}

/**
 * A vocabulary may lack some bytes and have no token for the unknown. The Rust library then leaves them out before it
 * merges, so that their neighbours can merge; the JavaScript one leaves them out afterwards.
 */
export function dropUnknownBeforeMerging(model: LibraryModel): void {
  const hasUnknown = (model.unk_token ?? null) !== null || model.byte_fallback === true;
  if (hasUnknown || model.bpe === undefined) return;
  const merge = model.bpe.bind(model);
  model.bpe = (word) => {
    const characters = Array.from(word);
    const known = characters.filter((character) => model.tokens_to_ids.has(character));
    return merge(known.length === characters.length ? word : known.join(''));
  };
}
