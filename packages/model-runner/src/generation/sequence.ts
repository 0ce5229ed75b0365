import type { ModelConfig } from '@stillhouse/checkpoint';
import { StillhouseError } from '@stillhouse/errors';

/** One sequence while it grows. */
export interface Sequence {
  /** Index among the prompts. */
  readonly index: number;
  readonly prompt: Int32Array;
  /** Most new ids. */
  readonly budget: number;
  /** New ids so far. */
  readonly ids: number[];
}

/** What one prompt was continued with. */
export interface GeneratedSequence {
  /** New ids, without the prompt and without the stop id. */
  readonly ids: Int32Array;
  /** `length`: no stop id within `maxNewTokens`, or the model's context is full. */
  readonly finishedBy: 'stop' | 'length';
}

/** Slots that a sequence needs for its next step: its newest id, which has no key yet, fills the last of them. */
export const slotsOf = ({ prompt, ids }: Sequence): number => prompt.length + Math.max(1, ids.length);

/** @throws StillhouseError PROMPT_EMPTY, PROMPT_ID_UNKNOWN, PROMPT_LONGER_THAN_CONTEXT */
export function checkPrompt(prompt: Int32Array, index: number, { vocabSize, maxPositions }: ModelConfig): void {
  const where = `prompt ${index}`;
  if (prompt.length === 0) {
    throw new StillhouseError({ code: 'PROMPT_EMPTY', where, problem: 'a prompt needs at least one token' });
  }
  const unknown = prompt.find((id) => id < 0 || id >= vocabSize);
  if (unknown !== undefined) {
    throw new StillhouseError({
      code: 'PROMPT_ID_UNKNOWN',
      where,
      problem: 'the model has no such id',
      expected: `0 to ${vocabSize - 1}`,
      got: String(unknown),
      remedy: "Use the model's own tokenizer",
    });
  }
  if (prompt.length >= maxPositions) {
    throw new StillhouseError({
      code: 'PROMPT_LONGER_THAN_CONTEXT',
      where,
      problem: 'the prompt leaves no room for a new token in the context',
      expected: `at most ${maxPositions - 1} tokens`,
      got: String(prompt.length),
      remedy: 'Shorten the prompt',
    });
  }
}
