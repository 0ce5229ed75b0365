import { StillhouseError } from '@stillhouse/errors';
import type { ChatMessage, ChatTemplate, JsonValue, Tokenizer } from '@stillhouse/tokenizer';
import type { Conversation } from '../read/messages.ts';

/** A conversation as text, and which parts of it the model is to say. */
export interface RenderedConversation {
  readonly text: string;
  /** Ascending, apart; in UTF-16 units: an assistant turn's content through its end-of-turn token. */
  readonly targets: readonly { readonly start: number; readonly end: number }[];
}

/**
 * Renders a conversation and finds each assistant turn in it by rendering its beginnings: turn i starts where
 * messages before it end with the generation prompt, and ends where messages up to it do. What a template puts between
 * the end-of-turn token and the next turn (a newline) is no target, nor is the role header.
 *
 * Where a turn does not go on from the generation prompt (R1-Distill's opens `<think>`), and where it is the first
 * message, the header is what two turns of different contents have in common.
 *
 * @throws StillhouseError ROW_TEMPLATE_REWRITES where the template shows a turn otherwise than it was written, such as
 *   without its thinking: what would be learnt is not what the row says
 */
export function renderConversation(
  { messages, tools }: Conversation,
  template: ChatTemplate,
  addedTokens: Tokenizer['addedTokens'],
  where: string,
): RenderedConversation {
  const withTools = tools === undefined ? {} : { tools };
  const render: Render = (turns, addGenerationPrompt) => template.render(turns, { ...withTools, addGenerationPrompt });
  const text = render(messages, false);
  const contents = addedTokens.map(({ content }) => content);
  const targets = messages.flatMap((message, index) => {
    if (message.role !== 'assistant') return [];
    const throughTurn = index === messages.length - 1 ? text : render(messages.slice(0, index + 1), false);
    const end = trimAfterEndOfTurn(throughTurn, contents);
    if (!text.startsWith(throughTurn.slice(0, end))) {
      refuseTurn(where, index, 'shows it otherwise once other turns follow', SPLIT_REMEDY);
    }
    const start = findContentStart(throughTurn, messages.slice(0, index), render);
    if (start === undefined || start > end)
      refuseTurn(where, index, 'does not append it to the turns before it', SPLIT_REMEDY);
    if (!squeeze(throughTurn.slice(start, end)).includes(squeeze(message.content))) {
      refuseTurn(where, index, 'does not show its content as it was written', TRACE_REMEDY);
    }
    return [{ start, end }];
  });
  return { text, targets };
}

const SPLIT_REMEDY = 'Make one row of each assistant turn, or write the row as prompt and response';
const TRACE_REMEDY = 'To learn the content with its thinking, write the row as prompt and response';

type Render = (turns: readonly ChatMessage[], addGenerationPrompt: boolean) => string;

function findContentStart(throughTurn: string, before: readonly ChatMessage[], render: Render): number | undefined {
  // Templates refuse the empty conversation.
  const prompt = before.length === 0 ? undefined : render(before, true);
  if (prompt !== undefined && throughTurn.startsWith(prompt)) return prompt.length;
  const [one, other] = ['A', 'B'].map((content) => render([...before, { role: 'assistant', content }], false));
  const start = commonLength(one!, other!);
  return throughTurn.startsWith(one!.slice(0, start)) ? start : undefined;
}

function commonLength(a: string, b: string): number {
  let length = 0;
  while (length < a.length && length < b.length && a[length] === b[length]) length++;
  return length;
}

/** The length without white space that follows an added token at the end; all of it where there is no such token. */
function trimAfterEndOfTurn(text: string, addedTokens: readonly string[]): number {
  const trimmed = text.trimEnd();
  return addedTokens.some((token) => trimmed.endsWith(token)) ? trimmed.length : text.length;
}

/** Templates trim and space contents; only what is said must be there. */
function squeeze(content: JsonValue | undefined): string {
  return typeof content === 'string' ? content.replace(/\s+/g, '') : '';
}

function refuseTurn(where: string, index: number, what: string, remedy: string): never {
  throw new StillhouseError({
    code: 'ROW_TEMPLATE_REWRITES',
    where: `${where}, messages[${index}]`,
    problem: `the chat template rewrites this assistant turn: it ${what}`,
    remedy,
  });
}
