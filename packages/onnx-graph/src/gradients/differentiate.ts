import { StillhouseError } from '@stillhouse/errors';
import { formatShape, shapesEqual } from '@stillhouse/tensor-types';
import type { GraphBuilder } from '../graph/builder.ts';
import { type Contribution, isFloat, type Node, type OperatorName, type Value } from '../graph/types.ts';
import type { GradientPart } from './gradient-part.ts';
import { GRADIENT_RULES, type GradientContext, type GradientRule, type GradientRules } from './rules.ts';

export interface DifferentiateOptions {
  /** Where gradients start: an output and the gradient that flows into it. A scalar loss takes the constant 1. */
  readonly seeds: readonly (readonly [output: Value, gradient: Value])[];
  readonly withRespectTo: readonly Value[];
  /** Accumulators: the gradient of a key is added to its value, in the operator itself where that can add. */
  readonly accumulateInto?: ReadonlyMap<Value, Value>;
  /** The table of rules; another one than the default serves to show that a check catches a wrong rule. */
  readonly rules?: GradientRules;
  /**
   * Leaves parts with a gradient of their own to the rules of their operators; serves to check the former by the
   * latter.
   */
  readonly ignoresParts?: boolean;
}

/**
 * Emits the reverse-mode gradient of everything that `seeds` depend on, into the same graph.
 *
 * @returns the gradient of each value of `withRespectTo`: same shape and dtype; where an accumulator was given,
 * their sum. A value that no seed depends on gets its accumulator, or zeros.
 * @throws StillhouseError GRAPH_NOT_DIFFERENTIABLE when a path leads through an operator without a gradient
 */
export function differentiate(g: GraphBuilder, options: DifferentiateOptions): ReadonlyMap<Value, Value> {
  const { seeds, withRespectTo, accumulateInto = new Map<Value, Value>(), rules = GRADIENT_RULES } = options;
  const partOf = new Map<Node, GradientPart>();
  if (options.ignoresParts !== true) {
    for (const part of g.gradientParts) for (const node of part.nodes) partOf.set(node, part);
  }
  const done = new Set<GradientPart>();
  const forward = [...g.nodes];
  const carriesGradient = findDependents(forward, withRespectTo);
  const contributions = new Map<Value, Contribution[]>();
  const contribute = (value: Value, contribution: Contribution) => {
    const list = contributions.get(value);
    if (list === undefined) contributions.set(value, [contribution]);
    else list.push(contribution);
  };
  for (const [output, gradient] of seeds) {
    checkSameType(g, output, gradient);
    contribute(output, gradient);
  }
  const wanted = new Set(withRespectTo);
  for (const node of forward.reverse()) {
    // A part goes back as a whole, at its last node: whatever uses its outputs comes later and has contributed.
    const part = partOf.get(node);
    if (part !== undefined && done.has(part)) {
      if (node.outputs.some((output) => contributions.has(output)))
        throw new Error(`${node.name} is inside a part with its own gradient and used outside of it`);
      continue;
    }
    if (part !== undefined) done.add(part);
    const { inputs, outputs } = part ?? node;
    if (!outputs.some((output) => carriesGradient.has(output) && contributions.has(output))) continue;
    const dOutputs = outputs.map((output) =>
      contributions.has(output) ? total(g, contributions.get(output)!, undefined) : undefined,
    );
    // A value that is both asked for and passed through keeps its total for the end.
    outputs.forEach((output, i) => {
      if (!wanted.has(output)) contributions.delete(output);
      else if (dOutputs[i] !== undefined) contributions.set(output, [dOutputs[i]]);
    });
    const needs = (i: number) => inputs[i] !== undefined && carriesGradient.has(inputs[i]);
    const results = g.scope(`gradient/${node.name}`, () =>
      part === undefined ? applyRule(g, rules, node, { dOutputs, needs }) : part.rule(dOutputs),
    );
    results.forEach((result, i) => {
      if (result !== undefined && needs(i)) contribute(inputs[i]!, result);
    });
  }
  return new Map(
    withRespectTo.map((value) => {
      const list = contributions.get(value) ?? [];
      const into = accumulateInto.get(value);
      if (into !== undefined) checkSameType(g, value, into);
      if (list.length === 0) return [value, into ?? g.zeros(value.shape, value.dtype)];
      return [value, g.scope(`gradient/${value.name}`, () => total(g, list, into))];
    }),
  );
}

function total(g: GraphBuilder, list: readonly Contribution[], into: Value | undefined): Value {
  let sum = into;
  // Plain values first: what can accumulate then adds onto them instead of needing an addition of its own.
  const ordered = [
    ...list.filter((one) => typeof one !== 'function'),
    ...list.filter((one) => typeof one === 'function'),
  ];
  for (const one of ordered) {
    if (typeof one === 'function') sum = one(sum);
    else sum = sum === undefined ? one : g.add(sum, one);
  }
  return sum!;
}

function findDependents(nodes: readonly Node[], roots: readonly Value[]): ReadonlySet<Value> {
  const dependents = new Set<Value>(roots);
  for (const node of nodes) {
    if (!node.inputs.some((input) => input !== undefined && dependents.has(input))) continue;
    for (const output of node.outputs) if (isFloat(output.dtype)) dependents.add(output);
  }
  return dependents;
}

function applyRule<Name extends OperatorName>(
  g: GraphBuilder,
  rules: GradientRules,
  node: Node,
  { dOutputs, needs }: Pick<GradientContext<Name>, 'dOutputs' | 'needs'>,
): readonly (Contribution | undefined)[] {
  const rule = rules[node.op as Name];
  if (typeof rule !== 'function') {
    throw new StillhouseError({
      code: 'GRAPH_NOT_DIFFERENTIABLE',
      where: `graph ${g.name}, node ${node.name}`,
      problem: `a gradient is asked for through ${node.op}, which has none: ${(rule as { reason: string }).reason}`,
      remedy: 'Keep the parameter off this path',
    });
  }
  const context = {
    g,
    inputs: node.inputs as readonly Value[],
    outputs: node.outputs,
    attributes: node.attributes,
    dOutputs,
    dy: dOutputs[0],
    needs,
  };
  return (rule as GradientRule<Name>)(context as GradientContext<Name>);
}

function checkSameType(g: GraphBuilder, value: Value, gradient: Value): void {
  if (value.dtype === gradient.dtype && shapesEqual(value.shape, gradient.shape)) return;
  throw new StillhouseError({
    code: 'GRAPH_TYPE_ERROR',
    where: `graph ${g.name}, gradient of ${value.name}`,
    problem: 'a gradient must have the type of its value',
    expected: `${value.dtype}${formatShape(value.shape)}`,
    got: `${gradient.dtype}${formatShape(gradient.shape)}`,
  });
}
