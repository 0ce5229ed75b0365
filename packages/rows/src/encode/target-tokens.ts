import type { Tokenizer } from '@stillhouse/tokenizer';
import type { RenderedConversation } from './conversation-targets.ts';

/** Tokens of a row, [start, end). */
export interface TokenSpan {
  readonly start: number;
  readonly end: number;
}

/** The tokens of each target: those that hold any of its characters. */
export function findTargetTokens(
  { text, targets }: RenderedConversation,
  ids: Int32Array,
  tokenizer: Tokenizer,
): readonly TokenSpan[] {
  const cuts = targets.flatMap(({ start, end }) => [start, end]);
  const pieces = [0, ...cuts].map((from, index) => tokenizer.encode(text.slice(from, cuts[index] ?? text.length)));
  // Usually the text falls apart at the cuts, as added tokens are there. Then the pieces' ids are the whole's.
  const starts = [0];
  for (const piece of pieces) starts.push(starts.at(-1)! + piece.length);
  const isApart =
    starts.at(-1) === ids.length && pieces.every((piece, index) => startsWithAt(ids, piece, starts[index]!));
  return targets.map(({ start, end }, index) =>
    isApart
      ? { start: starts[2 * index + 1]!, end: starts[2 * index + 2]! }
      : {
          start: countTokensWithin(text.slice(0, start), ids, tokenizer),
          end: countTokensReaching(text.slice(0, end), ids, tokenizer),
        },
  );
}

function startsWithAt(ids: Int32Array, piece: Int32Array, at: number): boolean {
  return piece.every((id, index) => ids[at + index] === id);
}

/** How many tokens lie wholly in the beginning `text` of what `ids` say. */
function countTokensWithin(text: string, ids: Int32Array, tokenizer: Tokenizer): number {
  const beginning = tokenizer.encode(text);
  const shared = beginning.findIndex((id, index) => ids[index] !== id);
  let count = shared < 0 ? beginning.length : shared;
  // Other tokens may still say the same, up to the one that goes beyond.
  const rest = tokenizer.decode(beginning.slice(count));
  const from = count;
  while (count < ids.length && rest.startsWith(tokenizer.decode(ids.slice(from, count + 1)))) count++;
  return count;
}

/** How many tokens it takes to say all of the beginning `text`. */
function countTokensReaching(text: string, ids: Int32Array, tokenizer: Tokenizer): number {
  const within = countTokensWithin(text, ids, tokenizer);
  const isWhole = tokenizer.decode(ids.slice(0, within)) === tokenizer.decode(tokenizer.encode(text));
  return isWhole ? within : within + 1;
}
