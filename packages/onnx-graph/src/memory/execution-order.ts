import type { Node } from '../graph/types.ts';

/**
 * The order in which ONNX Runtime runs the nodes of a graph on one thread of control: depth first from the nodes whose
 * results nothing reads, the last of them first, and of what a node reads what was made last.
 */
export function orderExecution(nodes: readonly Node[]): readonly Node[] {
  const places = new Map(nodes.map((node, i) => [node, i]));
  const sourcesOf = ({ inputs }: Node) => {
    const sources = new Set(inputs.map((input) => input?.node).filter((node) => node !== undefined));
    return [...sources].filter((node) => places.has(node)).sort((a, b) => places.get(a)! - places.get(b)!);
  };
  const read = new Set(nodes.flatMap(sourcesOf));
  const ordered: Node[] = [];
  const visited = new Set<Node>();
  const pending = nodes.filter((node) => !read.has(node)).map((node) => ({ node, isDone: false }));
  for (let next = pending.pop(); next !== undefined; next = pending.pop()) {
    const { node, isDone } = next;
    if (isDone) ordered.push(node);
    if (isDone || visited.has(node)) continue;
    visited.add(node);
    pending.push({ node, isDone: true });
    for (const source of sourcesOf(node)) if (!visited.has(source)) pending.push({ node: source, isDone: false });
  }
  return ordered;
}
