import { arrangeByPlace, describeParameters, type ModelConfig, type ModelWeights } from '@stillhouse/checkpoint';
import { emitBlock, emitSegmentBias, inverseFrequencies, type RotaryTables } from '@stillhouse/decoder';
import type { TokenBatch } from '@stillhouse/model-runner';
import type { FloatDtype, GraphBuilder, Value } from '@stillhouse/onnx-graph';
import type { Engine } from '@stillhouse/runtime';

/** What a whole decoder reads of a batch: ids int64, positions and segments int32 [B, T], columns int32 [T]. */
export interface BatchInputs {
  readonly ids: Value;
  readonly positions: Value;
  readonly segments: Value;
  readonly columns: Value;
}

export function batchInputs(g: GraphBuilder): BatchInputs {
  const matrix = (name: string) => g.input(name, 'int32', ['B', 'T']);
  return {
    ids: g.input('ids', 'int64', ['B', 'T']),
    positions: matrix('positions'),
    segments: matrix('segments'),
    columns: g.input('columns', 'int32', ['T']),
  };
}

/** cos and sin of position x inverse frequency for int32 positions [B, T], computed in the graph. */
function emitRotary(g: GraphBuilder, config: ModelConfig, positions: Value): RotaryTables {
  const frequencies = inverseFrequencies(config);
  const constant = g.float === 'float64' ? frequencies : Float32Array.from(frequencies);
  const column = g.reshape(g.cast(positions, g.float), ['B', 'T', 1]);
  const angles = g.mul(column, g.constant(constant, g.float, [config.headDim / 2]));
  return { cos: g.cos(angles), sin: g.sin(angles) };
}

/**
 * A whole decoder in one graph, put together independently of the layer programs: logits [B·T, V], and its parameters
 * by name, inputs called `prefix` + name.
 */
export function emitDecoder(g: GraphBuilder, config: ModelConfig, prefix: string, batch: BatchInputs) {
  const parameters = new Map(
    describeParameters(config).map(({ name, shape }) => [name, g.floatInput(`${prefix}${name}`, shape)]),
  );
  const { embedding, layers, norm, head } = arrangeByPlace(config, parameters);
  const rotary = emitRotary(g, config, batch.positions);
  const bias = emitSegmentBias(g, batch.segments, batch.columns);
  let x = g.reshape(g.gather(embedding, batch.ids), ['B*T', config.hiddenSize]);
  for (const [layer, own] of layers.entries()) {
    const weights = new Map(Object.entries(own));
    x = g.scope(`${prefix}${layer}`, () => emitBlock(g, config, { x, rotary, bias, weights }).x);
  }
  const hidden = g.rmsNormalization(x, norm, config.rmsNormEpsilon);
  return { logits: g.gemm(hidden, head, { transB: true }), parameters };
}

export function uploadBatchInputs(engine: Engine, batch: TokenBatch) {
  const shape = [batch.rows, batch.length];
  return {
    ids: engine.upload(batch.ids, 'int64', shape),
    positions: engine.upload(batch.positions, 'int32', shape),
    segments: engine.upload(batch.segments, 'int32', shape),
    columns: engine.upload(
      Int32Array.from({ length: batch.length }, (_, t) => t),
      'int32',
      [batch.length],
    ),
  };
}

export async function uploadParameters(engine: Engine, { tensors }: ModelWeights, prefix: string, float: FloatDtype) {
  const entries = [...tensors].map(
    async ([name, tensor]) =>
      [`${prefix}${name}`, engine.upload(await tensor.read(float), float, tensor.shape)] as const,
  );
  return Object.fromEntries(await Promise.all(entries));
}
