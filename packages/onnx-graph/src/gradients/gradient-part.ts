import type { Contribution, Node, Value } from '../graph/types.ts';

/**
 * A part of a graph whose gradient is emitted by a rule of its own instead of by those of its operators, because a
 * closed form needs fewer passes over the data. Nothing outside of the part may use what it computes but its outputs.
 */
export interface GradientPart {
  readonly nodes: ReadonlySet<Node>;
  readonly inputs: readonly Value[];
  readonly outputs: readonly Value[];
  readonly rule: PartGradient;
}

/**
 * @param dOutputs gradients of the outputs, `undefined` where nothing depends on one; at least one is there
 * @returns one contribution an input, `undefined` where there is none
 */
export type PartGradient = (dOutputs: readonly (Value | undefined)[]) => readonly (Contribution | undefined)[];
