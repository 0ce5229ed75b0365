import { formatShape } from '@stillhouse/tensor-types';
import type { GraphBuilder } from './builder.ts';
import { reachableNodes } from './reachable.ts';
import type { AttributeValue, Value } from './types.ts';

const typed = (value: Value) => `${value.name}: ${value.dtype}${formatShape(value.shape)}`;

function formatAttribute([name, value]: readonly [string, AttributeValue]): string {
  return `${name}=${Array.isArray(value) ? formatShape(value) : String(value)}`;
}

function formatOperand(value: Value | undefined): string {
  if (value === undefined) return '_';
  if (value.constant === undefined) return value.name;
  const elements = Array.from(value.constant as ArrayLike<number | bigint>, String);
  return elements.length > 4
    ? `${value.dtype}${formatShape(value.shape)}{...}`
    : value.shape.length === 0
      ? elements[0]!
      : `{${elements.join(', ')}}`;
}

/** One line an input, a live node and an output, in order of computation; names mirror the scopes they were made in. */
export function printGraph(g: GraphBuilder): string {
  const lines = [`graph ${g.name} (${g.float})`];
  for (const input of g.inputs) lines.push(`  input  ${typed(input)}`);
  for (const [name, value] of g.cuts) lines.push(`  input  ${name} = ${typed(value)}`);
  for (const node of reachableNodes(g.nodes, g.outputs.values(), new Set(g.cuts.values()))) {
    const attributes = Object.entries(node.attributes as Record<string, AttributeValue>).map(formatAttribute);
    lines.push(
      `  ${node.outputs.map(typed).join(', ')} = ` +
        `${node.op}(${[...node.inputs.map(formatOperand), ...attributes].join(', ')})`,
    );
  }
  for (const [name, value] of g.outputs) lines.push(`  output ${name} = ${typed(value)}`);
  return `${lines.join('\n')}\n`;
}
