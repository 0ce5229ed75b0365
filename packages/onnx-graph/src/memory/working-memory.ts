import { elementBytes, resolveDim } from '@stillhouse/tensor-types';
import type { GraphBuilder } from '../graph/builder.ts';
import { reachableNodes } from '../graph/reachable.ts';
import type { OperatorName, Value } from '../graph/types.ts';
import { type ArenaBlock, openArenaModel } from './arena-model.ts';
import { orderExecution } from './execution-order.ts';

/** Results that are another view of the first input. */
const VIEWS: ReadonlySet<OperatorName> = new Set<OperatorName>(['Reshape', 'Identity', 'BitCast']);

/**
 * The bytes that a program of the graph comes to hold for what it computes on the way, on the CPU: its values taken
 * from ONNX Runtime's arena and given back in the order of execution. Inputs, outputs and constants are not counted:
 * their memory is the caller's. As sizes are symbols, ONNX Runtime writes over no operand, and what nothing reads stays
 * to the end of the run. Programs that were measured held 1.03 to 1.11 of this (docs/log.md).
 * @param sizes of the symbols
 */
export function measureWorkingMemory(g: GraphBuilder, sizes: Readonly<Record<string, number>>): number {
  const given = new Set(g.cuts.values());
  const outputs = new Set(g.outputs.values());
  const nodes = orderExecution(reachableNodes(g.nodes, outputs, given));
  const arena = openArenaModel();
  const blocks = new Map<Value, ArenaBlock>();
  /** The values that others are views of. */
  const owners = new Map<Value, Value>();
  const uses = new Map<Value, number>();
  for (const { inputs } of nodes) for (const input of new Set(inputs)) if (input !== undefined) addUse(input);
  for (const node of nodes) {
    const isView = VIEWS.has(node.op);
    for (const output of node.outputs) {
      if (outputs.has(output) || given.has(output)) continue;
      if (isView) {
        owners.set(output, node.inputs[0]!);
        addUse(node.inputs[0]!);
      } else blocks.set(output, arena.allocate(sizeOf(output)));
    }
    for (const input of new Set(node.inputs)) if (input !== undefined) release(input);
  }
  return arena.touchedBytes();

  function addUse(value: Value): void {
    uses.set(value, (uses.get(value) ?? 0) + 1);
  }

  function release(value: Value): void {
    const left = uses.get(value)! - 1;
    uses.set(value, left);
    if (left > 0) return;
    const owner = owners.get(value);
    if (owner !== undefined) release(owner);
    const block = blocks.get(value);
    if (block !== undefined) arena.free(block);
  }

  function sizeOf({ dtype, shape }: Value): number {
    return shape.reduce<number>((product, dim) => {
      const size = resolveDim(dim, (symbol) => sizes[symbol]);
      if (size === undefined) throw new Error(`graph ${g.name}: no size was given for ${dim}`);
      return product * size;
    }, elementBytes(dtype));
  }
}
