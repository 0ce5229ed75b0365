import { StillhouseError } from '@stillhouse/errors';
import { formatShape, shapesEqual } from '@stillhouse/tensor-types';
import { findWebGpuProblems } from '../encode/webgpu-operators.ts';
import type { GraphBuilder } from './builder.ts';
import { inferTypes } from './operators.ts';
import type { Node, Value } from './types.ts';

/**
 * Checks a finished graph from scratch: every operand is defined before its use and belongs to this graph, names
 * are unique, every stored type is what inference gives now, constants hold as many elements as their shape says,
 * and there is an output.
 * @returns the problems found, each naming its node; empty when there are none
 */
export function findGraphProblems(g: GraphBuilder): readonly string[] {
  const problems: string[] = [];
  const defined = new Set<Value>([...g.inputs, ...g.constants]);
  const names = new Set<string>();
  const claim = (name: string, owner: string) => {
    if (names.has(name)) problems.push(`${owner}: the name ${name} is taken twice`);
    names.add(name);
  };
  for (const input of g.inputs) claim(input.name, 'input');
  for (const constant of g.constants) {
    claim(constant.name, 'constant');
    const count = constant.shape.reduce<number>((product, dim) => product * Number(dim), 1);
    if (constant.constant?.length !== count)
      problems.push(
        `constant ${constant.name}: ${constant.constant?.length} elements for ${formatShape(constant.shape)}`,
      );
  }
  for (const node of g.nodes) {
    for (const input of node.inputs) {
      if (input !== undefined && !defined.has(input))
        problems.push(`node ${node.name}: operand ${input.name} is not defined before it in graph ${g.name}`);
    }
    try {
      const types = inferTypes(node.op, node.inputs, node.attributes as never, node.name);
      types.forEach((type, i) => {
        const stored = node.outputs[i];
        if (stored === undefined || stored.dtype !== type.dtype || !shapesEqual(stored.shape, type.shape)) {
          problems.push(
            `node ${node.name}: output ${i} is stored as ${stored?.dtype}${formatShape(stored?.shape ?? [])}, ` +
              `inferred ${type.dtype}${formatShape(type.shape)}`,
          );
        }
      });
    } catch (error) {
      problems.push(String((error as Error).message));
    }
    for (const output of node.outputs) {
      claim(output.name, `node ${node.name}`);
      defined.add(output);
    }
  }
  if (g.outputs.size === 0) problems.push('the graph has no output');
  for (const [name, value] of g.outputs)
    if (!defined.has(value)) problems.push(`output ${name}: ${value.name} is not computed in graph ${g.name}`);
  return problems;
}

/** @throws StillhouseError GRAPH_INVALID with every problem found */
export function verifyGraph(g: GraphBuilder): void {
  const problems = findGraphProblems(g);
  if (problems.length === 0) return;
  throw new StillhouseError({
    code: 'GRAPH_INVALID',
    where: `graph ${g.name}`,
    problem: problems.join('; '),
    remedy: 'This is a defect of the code that built the graph',
  });
}

/**
 * @throws StillhouseError GRAPH_UNSUPPORTED_BY_DEVICE with every operator that ONNX Runtime's WebGPU provider has no
 * kernel for
 */
export function verifyWebGpuGraph(name: string, nodes: readonly Node[]): void {
  const problems = findWebGpuProblems(nodes);
  if (problems.length === 0) return;
  throw new StillhouseError({
    code: 'GRAPH_UNSUPPORTED_BY_DEVICE',
    where: `graph ${name} on the device webgpu`,
    problem: `some operators have no kernel there: ${problems.join('; ')}`,
    remedy: 'Choose the device cpu, or settings that need no such operator',
  });
}
