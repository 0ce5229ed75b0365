import type { Node, Value } from './types.ts';

/** The nodes that `outputs` depend on, in their order in `nodes`; all others are dead. */
export function reachableNodes(nodes: readonly Node[], outputs: Iterable<Value>): readonly Node[] {
  const live = new Set<Node>();
  const pending = [...outputs];
  for (let value = pending.pop(); value !== undefined; value = pending.pop()) {
    const node = value.node;
    if (node === undefined || live.has(node)) continue;
    live.add(node);
    for (const input of node.inputs) if (input !== undefined) pending.push(input);
  }
  return nodes.filter((node) => live.has(node));
}
