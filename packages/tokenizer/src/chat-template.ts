import { createHash } from 'node:crypto';
import { Environment, Interpreter, Template } from '@huggingface/jinja';
import { StillhouseError } from '@stillhouse/errors';
import { strftime } from './strftime.ts';

export type JsonValue = string | number | boolean | null | readonly JsonValue[] | { readonly [key: string]: JsonValue };

/** One turn; templates may read further keys, such as `tool_calls` or `reasoning_content`. */
export interface ChatMessage {
  readonly role: string;
  readonly content?: JsonValue;
  readonly [key: string]: JsonValue | undefined;
}

export interface RenderOptions {
  /** End with what makes the model answer as the assistant. Default false. */
  readonly addGenerationPrompt?: boolean;
  /** JSON schemas of functions the model may call. */
  readonly tools?: readonly JsonValue[];
  /** The time that a template's `strftime_now` sees. Default: now. */
  readonly now?: Date;
}

export interface ChatTemplate {
  /** Lower-case hexadecimal sha256 of the template's source, or of all of them where a tokenizer has several. */
  readonly sha256: string;
  /**
   * The conversation as text, character for character what `transformers` (5.23) returns from
   * `apply_chat_template(tokenize=False)`. To turn it into ids use `encode`, which adds no special tokens: templates
   * write their own BOS. JSON numbers that only Python keeps apart (1.0 and 1) render as JavaScript's.
   * @throws StillhouseError CHAT_TEMPLATE_CORRUPT (does not compile), CHAT_TEMPLATE_FAILED (refuses the conversation)
   */
  render(messages: readonly ChatMessage[], options?: RenderOptions): string;
}

/** Template sources by name; `default`, and `tool_use` for conversations with tools where there is one. */
export type TemplateSources = Readonly<Record<string, string>>;

const REASONING_KEYS = ['reasoning_content', 'thinking', 'reasoning'] as const;

/**
 * @param where named in errors
 * @param specialTokens variables for the template, such as `bos_token`
 */
export function createChatTemplate(
  sources: TemplateSources,
  specialTokens: Readonly<Record<string, string>>,
  where: string,
): ChatTemplate {
  const compiled = new Map<string, Template>();
  const compile = (name: string): Template => {
    const known = compiled.get(name);
    if (known !== undefined) return known;
    try {
      // Jinja reads every line end as \n.
      const template = new Template(sources[name]!.replace(/\r\n?/g, '\n'));
      compiled.set(name, template);
      return template;
    } catch (cause) {
      const problem = `the chat template does not compile (${(cause as Error).message})`;
      throw new StillhouseError({ code: 'CHAT_TEMPLATE_CORRUPT', where, problem, cause });
    }
  };
  return {
    sha256: digestSources(sources),
    render: (messages, options = {}) => {
      const name = options.tools !== undefined && 'tool_use' in sources ? 'tool_use' : 'default';
      if (!(name in sources)) refuse(where, `there are templates named ${Object.keys(sources).join(', ')}, no default`);
      if (messages.length === 0) refuse(where, 'the conversation is empty');
      const template = compile(name);
      try {
        return run(template, {
          ...specialTokens,
          messages: messages.map(prepareMessage),
          tools: options.tools ?? null,
          documents: null,
          add_generation_prompt: options.addGenerationPrompt ?? false,
          strftime_now: (format: string) => strftime(options.now ?? new Date(), format),
        });
      } catch (cause) {
        refuse(where, `the chat template refuses the conversation (${(cause as Error).message})`, cause);
      }
    },
  };
}

/** The names every template knows. The library's own `render` has them too, but with a clock of its own. */
const GLOBALS: Readonly<Record<string, unknown>> = {
  true: true,
  True: true,
  false: false,
  False: false,
  none: null,
  None: null,
  range,
  raise_exception: (message: string) => {
    throw new Error(message);
  },
};

function range(first: number, end?: number, step = 1): readonly number[] {
  const [start, stop] = end === undefined ? [0, first] : [first, end];
  if (step === 0) throw new Error('range() arg 3 must not be zero');
  return Array.from({ length: Math.max(0, Math.ceil((stop - start) / step)) }, (_, index) => start + index * step);
}

function run(template: Template, variables: Readonly<Record<string, unknown>>): string {
  const environment = new Environment();
  for (const [name, value] of Object.entries({ ...GLOBALS, ...variables })) environment.set(name, value);
  return (new Interpreter(environment).run(template.parsed) as { readonly value: string }).value;
}

function digestSources(sources: TemplateSources): string {
  const names = Object.keys(sources).sort();
  const whole = names.length === 1 ? sources[names[0]!]! : JSON.stringify(names.map((name) => [name, sources[name]]));
  return createHash('sha256').update(whole).digest('hex');
}

function refuse(where: string, problem: string, cause?: unknown): never {
  throw new StillhouseError({
    code: 'CHAT_TEMPLATE_FAILED',
    where,
    problem,
    ...(cause === undefined ? {} : { cause }),
  });
}

/** As transformers does: keys without a value are dropped, and reasoning is found under each of its names. */
function prepareMessage(message: ChatMessage): Readonly<Record<string, JsonValue>> {
  const kept: Record<string, JsonValue> = {};
  for (const [key, value] of Object.entries(message)) {
    if (value !== null && value !== undefined) kept[key] = value;
  }
  const reasoning = REASONING_KEYS.map((key) => kept[key]).find((value) => value !== undefined);
  return reasoning === undefined ? kept : { thinking: reasoning, ...kept, reasoning_content: reasoning };
}
