import type { GraphBuilder } from './builder.ts';
import type { Node, Value } from './types.ts';

/**
 * The nodes that `outputs` depend on, in their order in `nodes`; all others are dead.
 * @param given values that are there already: what they depend on is not needed
 */
export function reachableNodes(
  nodes: readonly Node[],
  outputs: Iterable<Value>,
  given: ReadonlySet<Value> = new Set(),
): readonly Node[] {
  const live = new Set<Node>();
  const pending = [...outputs];
  for (let value = pending.pop(); value !== undefined; value = pending.pop()) {
    const node = value.node;
    if (node === undefined || live.has(node) || given.has(value)) continue;
    live.add(node);
    for (const input of node.inputs) if (input !== undefined) pending.push(input);
  }
  return nodes.filter((node) => live.has(node));
}

/**
 * Where a graph can be cut: the values that `isCut` and that `outputs` depend on without another such value in between.
 * Given these, the rest of the graph is what lies between them and `outputs`.
 */
export function findCut(outputs: Iterable<Value>, isCut: (value: Value) => boolean): readonly Value[] {
  const cut = new Set<Value>();
  const seen = new Set<Value>();
  const pending = [...outputs];
  for (let value = pending.pop(); value !== undefined; value = pending.pop()) {
    if (seen.has(value)) continue;
    seen.add(value);
    if (isCut(value)) cut.add(value);
    else for (const input of value.node?.inputs ?? []) if (input !== undefined) pending.push(input);
  }
  return [...cut];
}

/**
 * Whether the graph adds rows at indices that may repeat. ONNX Runtime's CPU kernel of ScatterND shares the rows out
 * among its threads without regard to which they write to, and then additions to one row are lost
 * (microsoft/onnxruntime#23396): such a graph is right on one thread only.
 */
export function racesOnThreads(g: GraphBuilder): boolean {
  return reachableNodes(g.nodes, g.outputs.values(), new Set(g.cuts.values())).some(
    ({ op, attributes }) => op === 'ScatterND' && (attributes as { readonly reduction: string }).reduction === 'add',
  );
}
