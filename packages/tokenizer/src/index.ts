/** Text to ids and back, chat templates, and what ids mean: as Python's `transformers` does it, from the same files. */
export type { ChatMessage, ChatTemplate, JsonValue, RenderOptions } from './chat-template.ts';
export { assertSameMeanings, compareMeanings, type DifferingId, type MeaningComparison } from './meanings.ts';
export { type AddedToken, openTokenizer, type Tokenizer } from './tokenizer.ts';
export { hasTokenizer, type TokenizerFile } from './tokenizer-folder.ts';
