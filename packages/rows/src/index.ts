/**
 * Text to ids and mask: lines, forms, conversations, the tokens that are to be predicted. One reader for builds and
 * evaluation.
 */
export { type RenderedConversation, renderConversation } from './encode/conversation-targets.ts';
export { type EncodedRow, type EncodeOptions, encodeRow } from './encode/encode-row.ts';
export { type RowSummary, summariseRows } from './encode/row-summary.ts';
export { readDataRows } from './read/data-rows.ts';
export type { Conversation } from './read/messages.ts';
export { type Question, type QuestionPrompt, readQuestions } from './read/questions.ts';
export type { ReadOptions } from './read/records.ts';
export type { DataRow, RowContent, RowMetadata } from './read/row-content.ts';
