import {
  cacheBiasGraph,
  cachedBlockGraph,
  computeRotaryTables,
  embeddingGraph,
  gatherRowsGraph,
  greedyHeadGraph,
} from '@stillhouse/decoder';
import type { Call, DeviceTensor, Engine, Program } from '@stillhouse/runtime';
import type { DecoderOnDevice } from '../weights/resident-decoder.ts';
import { type KeyValueStore, slotRows } from './key-value-store.ts';

/** The programs of a decoder over a KV store; each compiled once. */
export interface CachedPrograms {
  readonly bias: Program;
  readonly embedding: Program;
  readonly block: Program;
  readonly gatherStates: Program;
  readonly gatherSlots: Program;
  readonly head: Program;
}

export async function compileCachedPrograms(
  engine: Engine,
  { config, float }: DecoderOnDevice,
): Promise<CachedPrograms> {
  const graphs = {
    bias: cacheBiasGraph(float),
    embedding: embeddingGraph(config, float),
    block: cachedBlockGraph(config, float),
    gatherStates: gatherRowsGraph(config.hiddenSize, float),
    gatherSlots: gatherRowsGraph(config.headDim, float),
    head: greedyHeadGraph(config, float),
  };
  const compiled = Object.entries(graphs).map(async ([name, graph]) => [name, await engine.compile(graph)] as const);
  return Object.fromEntries(await Promise.all(compiled)) as unknown as CachedPrograms;
}

/** What generation runs with. */
export interface CachedDecoder {
  readonly engine: Engine;
  readonly model: DecoderOnDevice;
  readonly programs: CachedPrograms;
}

/** Columns of every row of a store on their way through the layers: keys and values are read and written there. */
export interface CachedPass {
  /** The residual stream, [rows · length, hiddenSize]: what the calls make of it. */
  readonly x: DeviceTensor;
  /**
   * The calls of all layers.
   * @param ids [rows · length]
   * @param positions [rows · length]: where each id stands in its sequence, and the slot that it fills
   */
  take(ids: BigInt64Array, positions: Int32Array): readonly Call[];
  close(): void;
}

/** @param store whole, or a view of some of its rows */
export function openCachedPass(decoder: CachedDecoder, store: KeyValueStore, length: number): CachedPass {
  const { engine, model } = decoder;
  const { config, float } = model;
  const { rows, slots } = store;
  const table = [rows, length, config.headDim / 2];
  const slotNumbers = Int32Array.from({ length: slots }, (_, slot) => slot);
  const tensors = {
    ids: engine.allocate('int64', [rows * length]),
    positions: engine.allocate('int32', [rows, length]),
    slotRows: engine.allocate('int64', [rows * config.kvHeadCount * length, 1]),
    slotNumbers: engine.upload(slotNumbers, 'int32', [slots]),
    cos: engine.allocate(float, table),
    sin: engine.allocate(float, table),
    bias: engine.allocate(float, [rows, 1, 1, length, slots]),
    x: engine.allocate(float, [rows * length, config.hiddenSize]),
  };
  const calls = layerCalls(decoder, store, tensors);
  return {
    x: tensors.x,
    take: (ids, positions) => {
      const rotary = computeRotaryTables(config, positions, float);
      engine.write(tensors.ids, ids);
      engine.write(tensors.positions, positions);
      engine.write(tensors.slotRows, slotRows(config, store, positions));
      engine.write(tensors.cos, rotary.cos);
      engine.write(tensors.sin, rotary.sin);
      return calls;
    },
    close: () => {
      for (const tensor of Object.values(tensors)) engine.free(tensor);
    },
  };
}

type PassTensors = Readonly<
  Record<'ids' | 'positions' | 'slotRows' | 'slotNumbers' | 'cos' | 'sin' | 'bias' | 'x', DeviceTensor>
>;

function layerCalls(
  { model, programs }: CachedDecoder,
  store: KeyValueStore,
  { ids, positions, slotNumbers, bias, x, cos, sin, slotRows: places }: PassTensors,
): readonly Call[] {
  const call = (program: Program, inputs: PassTensorRecord, outputs: PassTensorRecord): Call => ({
    kind: 'run',
    program,
    inputs,
    outputs,
  });
  return [
    call(programs.bias, { positions, slots: slotNumbers }, { bias }),
    call(programs.embedding, { ids, table: model.embedding }, { x }),
    ...model.layers.map((weights, layer) => {
      const [keys, values] = [store.keys[layer]!, store.values[layer]!];
      const inputs = { x, cos, sin, bias, keys, values, slotRows: places, ...weights };
      // In place: all that reads x comes before the product that writes the result.
      return call(programs.block, inputs, { y: x, 'keys.written': keys, 'values.written': values });
    }),
  ];
}

type PassTensorRecord = Readonly<Record<string, DeviceTensor>>;

/** The most probable id after each state. @param x [N, hiddenSize] @param next int64 [N] */
export function headCall({ model, programs }: CachedDecoder, x: DeviceTensor, next: DeviceTensor): Call {
  return { kind: 'run', program: programs.head, inputs: { x, norm: model.norm, head: model.head }, outputs: { next } };
}

/** Runs the calls and brings `next` back with one wait instead of two. */
export async function runAndRead(engine: Engine, calls: readonly Call[], next: DeviceTensor): Promise<BigInt64Array> {
  const [, ids] = await Promise.all([engine.run(calls), engine.download(next)]);
  return ids as BigInt64Array;
}
