import { isStillhouseError, StillhouseError } from '@stillhouse/errors';
import { renderConversation } from '@stillhouse/rows';
import type { TopKPolicy } from '@stillhouse/teacher-cache';
import type { Tokenizer } from '@stillhouse/tokenizer';
import type { BuildSettings } from '../settings/build-settings.ts';
import type { Teacher } from '../teacher/teacher.ts';

/** Where a model stops thinking; how long it thinks hangs on this one id. */
const END_OF_THINKING = '</think>';

/**
 * The policy with the ids that `pin` names. `auto` pins none beside a fixed k, and with `topP` the ids that end a
 * sequence, a turn or the thinking, as far as the tokenizer has them: rare where they do not belong, decisive where
 * they do.
 * @param tokenizer null where rows come as ids
 * @throws StillhouseError PINNED_ID_UNKNOWN, LABELS_CONTRADICTORY
 */
export function pinIds(
  policy: TopKPolicy,
  pin: BuildSettings['pin'],
  { size, eosTokenIds }: Teacher['vocabulary'],
  tokenizer: Tokenizer | null,
): TopKPolicy {
  const named: readonly (string | number)[] = pin;
  const isWord = named.includes('auto') || named.includes('none');
  if (isWord && named.length > 1) {
    throw new StillhouseError({
      code: 'LABELS_CONTRADICTORY',
      where: '--pin',
      problem: 'auto and none go with nothing else',
      expected: 'auto, none, or a list of tokens or ids',
      got: named.join(','),
    });
  }
  const ids = isWord
    ? named[0] === 'auto' && policy.topP !== undefined
      ? [...eosTokenIds, ...(tokenizer === null ? [] : findEnds(tokenizer))]
      : []
    : named.map((one) => findId(one, size, tokenizer));
  return { ...policy, pinnedIds: [...new Set(ids)].filter((id) => id < size).sort((a, b) => a - b) };
}

/** The tokenizer's ids that end a sequence, a turn or the thinking. */
function findEnds(tokenizer: Tokenizer): readonly number[] {
  const ids = [tokenizer.eosTokenId, findEndOfTurn(tokenizer), tokenizer.idOf(END_OF_THINKING)];
  return ids.filter((id) => id !== undefined);
}

/** The token that the chat template puts after an assistant's turn. */
function findEndOfTurn({ chatTemplate, addedTokens, idOf }: Tokenizer): number | undefined {
  if (chatTemplate === undefined) return undefined;
  const content = 'A';
  const messages = [
    { role: 'user', content: 'Q' },
    { role: 'assistant', content },
  ];
  try {
    const { text, targets } = renderConversation({ messages }, chatTemplate, addedTokens, 'chat template');
    const { start, end } = targets[0]!;
    const turn = text.slice(start, end);
    return idOf(turn.slice(turn.lastIndexOf(content) + content.length).trim());
  } catch (error) {
    // A template that has no plain turns has no such token.
    if (isStillhouseError(error)) return undefined;
    throw error;
  }
}

function findId(pin: string | number, vocabSize: number, tokenizer: Tokenizer | null): number {
  const id = typeof pin === 'number' ? pin : tokenizer?.idOf(pin);
  if (id !== undefined && Number.isSafeInteger(id) && id >= 0 && id < vocabSize) return id;
  throw new StillhouseError({
    code: 'PINNED_ID_UNKNOWN',
    where: '--pin',
    problem:
      typeof pin === 'string' && tokenizer === null
        ? 'a token needs a tokenizer'
        : 'the teacher has no such id or token',
    expected: `a token of the vocabulary, or an id from 0 to ${vocabSize - 1}`,
    got: String(pin),
  });
}
