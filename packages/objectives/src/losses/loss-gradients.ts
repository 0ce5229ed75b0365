import { differentiate, type GraphBuilder, type Value } from '@stillhouse/onnx-graph';

/**
 * The outputs that carry a chunk's gradients: dx of the state, where it is wanted, and for each trained value NAME the
 * sum `gradient.NAME.sum` of the input `gradient.NAME`, which it is meant to alias, and its gradient.
 * @param total the scalar that is differentiated
 * @param x the state whose gradient is wanted
 */
export function outputGradients(
  g: GraphBuilder,
  total: Value,
  x: Value | undefined,
  trained: readonly (readonly [name: string, value: Value])[],
): void {
  const accumulateInto = new Map(
    trained.map(([name, value]) => [value, g.floatInput(`gradient.${name}`, value.shape)]),
  );
  const gradients = differentiate(g, {
    seeds: [[total, g.scalar(1)]],
    withRespectTo: [...(x === undefined ? [] : [x]), ...trained.map(([, value]) => value)],
    accumulateInto,
  });
  if (x !== undefined) g.output('dx', gradients.get(x)!);
  for (const [name, value] of trained) g.output(`gradient.${name}.sum`, gradients.get(value)!);
}
