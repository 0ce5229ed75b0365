import type { Conversation } from './messages.ts';

/** What a row may say about itself besides its tokens. */
export interface RowMetadata {
  readonly task?: string;
  readonly split?: string;
  readonly source?: string;
  readonly answer?: string;
}

/** What a row says, by its form: a conversation, a prompt with its response, a text, or ids as they are. */
export type RowContent =
  | ({ readonly form: 'messages' } & Conversation)
  | { readonly form: 'exchange'; readonly prompt: string; readonly response: string }
  | { readonly form: 'text'; readonly text: string }
  | {
      readonly form: 'ids';
      /** [L] */
      readonly inputIds: Int32Array;
      /** [L] 1 where the token is to be predicted. */
      readonly lossMask: Uint8Array;
    };

/** A line of a data file. */
export interface DataRow {
  /** Unique in its file. */
  readonly id: string;
  /** Counted from 1. */
  readonly line: number;
  readonly metadata: RowMetadata;
  readonly content: RowContent;
}
