import type { ModelWeights, WeightTensor } from '@stillhouse/checkpoint';
import {
  type BatchTensors,
  blockCall,
  compileForwardPrograms,
  embeddingCall,
  type ForwardPrograms,
  flatIndex,
  freeBatch,
  type LayerPrograms,
  packSequences,
  releaseForwardPrograms,
  type TokenBatch,
  takeLayerPrograms,
  uploadBatch,
} from '@stillhouse/decoder';
import type { FloatArray } from '@stillhouse/objectives';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { Call, DeviceTensor, Engine } from '@stillhouse/runtime';

/** Tokens of a batch, whatever the rows. */
const BATCH_TOKENS = 2048;

/** Token ids, and the positions whose states are wanted. */
export interface StateRequest {
  /** [L] */
  readonly inputIds: Int32Array;
  /** Ascending; each below L. */
  readonly positions: Int32Array;
}

/** One weight on the device. */
export async function uploadWeight(engine: Engine, weight: WeightTensor, float: FloatDtype): Promise<DeviceTensor> {
  return engine.upload(await weight.read(float), float, weight.shape, { transfer: true });
}

/**
 * What enters a model's output matrix at the wanted positions, rows in order. All rows go through one layer before the
 * next is read, so that memory holds the larger of the embedding and one layer, and the rows' residual streams.
 * @returns [n, H], n the positions of all rows
 */
export async function computeFinalStates(
  engine: Engine,
  model: ModelWeights,
  rows: readonly StateRequest[],
  float: FloatDtype,
): Promise<FloatArray> {
  const { config } = model;
  const programs = await compileForwardPrograms(engine, config, float);
  const batches = await Promise.all(groupRows(rows).map((group) => openBatch(engine, programs, rows, group, float)));
  const run = async (calls: readonly Call[], weights: readonly DeviceTensor[]) => {
    await engine.run(calls);
    for (const weight of weights) engine.free(weight);
  };
  try {
    const table = await uploadWeight(engine, model.embedding, float);
    await run(
      batches.flatMap(({ tensors, states }) => [
        ...tensors.biasCalls,
        embeddingCall(programs, tensors, table, states[0]),
      ]),
      [table],
    );
    for (const [layer, tensors] of model.layers.entries()) {
      const weights: Record<string, DeviceTensor> = {};
      for (const [name, tensor] of Object.entries(tensors)) weights[name] = await uploadWeight(engine, tensor, float);
      const [from, to] = layer % 2 === 0 ? ([0, 1] as const) : ([1, 0] as const);
      await run(
        batches.map(({ programsOfLayer, tensors, states }) =>
          blockCall(programsOfLayer, tensors, weights, { x: states[from], y: states[to] }),
        ),
        Object.values(weights),
      );
    }
    const norm = await uploadWeight(engine, model.norm, float);
    const width = config.hiddenSize;
    const starts = startsOf(rows);
    const total = starts.at(-1)!;
    const result = float === 'float64' ? new Float64Array(total * width) : new Float32Array(total * width);
    for (const { batch, group, states } of batches) {
      const x = states[config.layerCount % 2 === 0 ? 0 : 1];
      const flat = group.flatMap((row, i) =>
        Array.from(rows[row]!.positions, (position) => BigInt(flatIndex(batch, batch.placements[i]!, position))),
      );
      if (flat.length === 0) continue;
      const indices = engine.upload(BigInt64Array.from(flat), 'int64', [flat.length]);
      const [gathered, normed] = [0, 1].map(() => engine.allocate(float, [flat.length, width])) as [
        DeviceTensor,
        DeviceTensor,
      ];
      const calls: readonly Call[] = [
        { kind: 'run', program: programs.gatherRows, inputs: { x, indices }, outputs: { rows: gathered } },
        { kind: 'run', program: programs.finalNorm, inputs: { x: gathered, norm }, outputs: { hidden: normed } },
      ];
      await engine.run(calls);
      const values = (await engine.download(normed)) as FloatArray;
      for (const tensor of [indices, gathered, normed]) engine.free(tensor);
      let at = 0;
      for (const row of group) {
        const size = rows[row]!.positions.length * width;
        result.set(values.subarray(at, at + size), starts[row]! * width);
        at += size;
      }
    }
    engine.free(norm);
    return result;
  } finally {
    for (const { tensors, states } of batches) {
      freeBatch(engine, tensors);
      for (const state of states) engine.free(state);
    }
    releaseForwardPrograms(programs);
  }
}

/** Index of each row's first position among those of all rows; one more number at the end. */
export function startsOf(rows: readonly { readonly positions: Int32Array }[]): readonly number[] {
  const starts = [0];
  for (const { positions } of rows) starts.push(starts.at(-1)! + positions.length);
  return starts;
}

interface OpenBatch {
  /** Indices of its rows. */
  readonly group: readonly number[];
  readonly batch: TokenBatch;
  readonly tensors: BatchTensors;
  readonly programsOfLayer: LayerPrograms;
  /** Two residual streams, written in turns. */
  readonly states: readonly [DeviceTensor, DeviceTensor];
}

async function openBatch(
  engine: Engine,
  programs: ForwardPrograms,
  rows: readonly StateRequest[],
  group: readonly number[],
  float: FloatDtype,
): Promise<OpenBatch> {
  const batch = packSequences(group.map((row) => rows[row]!.inputIds));
  const programsOfLayer = await takeLayerPrograms(programs, batch);
  const tensors = uploadBatch(engine, programs, batch);
  const state = () => engine.allocate(float, [tensors.tokens, programs.config.hiddenSize]);
  return { group, batch, programsOfLayer, tensors, states: [state(), state()] };
}

/** Rows of like length together, about BATCH_TOKENS at a time. */
function groupRows(rows: readonly StateRequest[]): readonly (readonly number[])[] {
  const length = (row: number) => rows[row]!.inputIds.length;
  const groups: number[][] = [];
  for (const row of [...rows.keys()].sort((a, b) => length(a) - length(b) || a - b)) {
    const last = groups.at(-1);
    if (last !== undefined && (last.length + 1) * length(row) <= BATCH_TOKENS) last.push(row);
    else groups.push([row]);
  }
  return groups;
}
