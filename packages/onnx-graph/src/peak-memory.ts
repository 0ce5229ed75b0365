import type { GraphBuilder } from './builder.ts';
import { resolveDim } from './dims.ts';
import { reachableNodes } from './reachable.ts';
import type { Dtype, Node, OperatorName, Value } from './types.ts';

const BYTES: Readonly<Record<Dtype, number>> = {
  float32: 4,
  float64: 8,
  float16: 2,
  bfloat16: 2,
  int64: 8,
  int32: 4,
  int8: 1,
  uint8: 1,
  uint16: 2,
  bool: 1,
};

/** Results that are another view of the first input. */
const VIEWS: ReadonlySet<OperatorName> = new Set<OperatorName>(['Reshape', 'Identity', 'BitCast']);

/** Operators that write over an input of the same size that nothing reads any more. */
const IN_PLACE: ReadonlySet<OperatorName> = new Set<OperatorName>([
  'Add',
  'Sub',
  'Mul',
  'Div',
  'Neg',
  'Abs',
  'Exp',
  'Log',
  'Sqrt',
  'Reciprocal',
  'Sigmoid',
  'Cos',
  'Sin',
  'Softmax',
  'LogSoftmax',
  'ScatterND',
  'ScatterElements',
]);

/**
 * The most bytes of intermediate values that are alive at a time when the nodes run in the order in which they were made.
 * Inputs, outputs and constants are not counted: their memory is the caller's.
 * @param sizes of the symbols
 */
export function measureIntermediates(g: GraphBuilder, sizes: Readonly<Record<string, number>>): number {
  const given = new Set(g.cuts.values());
  const nodes = reachableNodes(g.nodes, g.outputs.values(), given);
  const computed = new Set<Value>(nodes.flatMap(({ outputs }) => outputs));
  /** The value whose memory a value lies in. */
  const owners = new Map<Value, Value>();
  const ownerOf = (value: Value): Value => {
    const owner = owners.get(value);
    return owner === undefined ? value : ownerOf(owner);
  };
  const free = new Set<Value>([...g.outputs.values()]);
  const bytesOf = (value: Value) => {
    const elements = value.shape.reduce<number>((product, dim) => {
      const size = resolveDim(dim, sizes);
      if (size === undefined) throw new Error(`graph ${g.name}: no size was given for ${dim}`);
      return product * size;
    }, 1);
    return elements * BYTES[value.dtype];
  };
  const isOurs = (value: Value) => computed.has(value) && !given.has(value) && !free.has(value);
  const uses = countUses(nodes, g);
  let alive = 0;
  let peak = 0;
  const held = new Map<Value, number>();
  const release = (value: Value) => {
    const left = uses.get(value)! - 1;
    uses.set(value, left);
    if (left > 0) return;
    const owner = ownerOf(value);
    if (owner !== value) {
      release(owner);
      return;
    }
    alive -= held.get(value) ?? 0;
    held.delete(value);
  };
  for (const node of nodes) {
    const [first] = node.outputs;
    const source = VIEWS.has(node.op)
      ? node.inputs[0]
      : IN_PLACE.has(node.op) && isOurs(first!)
        ? node.inputs.find((input) => canOverwrite(input, first!))
        : undefined;
    if (source !== undefined && computed.has(source)) {
      owners.set(first!, source);
      // The owner lives on as long as what lies in it.
      uses.set(source, (uses.get(source) ?? 0) + 1);
    }
    for (const output of node.outputs) {
      if (!isOurs(output) || owners.has(output) || uses.get(output) === undefined) continue;
      held.set(output, bytesOf(output));
      alive += held.get(output)!;
    }
    peak = Math.max(peak, alive);
    for (const input of new Set(node.inputs)) if (input !== undefined && uses.has(input)) release(input);
  }
  return peak;

  function canOverwrite(input: Value | undefined, output: Value): boolean {
    return (
      input !== undefined &&
      isOurs(ownerOf(input)) &&
      uses.get(input) === 1 &&
      held.get(ownerOf(input)) === bytesOf(output)
    );
  }
}

/** By how many nodes each value is read, and once more where it is an output. */
function countUses(nodes: readonly Node[], g: GraphBuilder): Map<Value, number> {
  const uses = new Map<Value, number>();
  const count = (value: Value) => uses.set(value, (uses.get(value) ?? 0) + 1);
  for (const { inputs } of nodes) for (const input of new Set(inputs)) if (input !== undefined) count(input);
  for (const value of g.outputs.values()) count(value);
  return uses;
}
