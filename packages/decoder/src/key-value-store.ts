import type { ModelConfig } from '@stillhouse/checkpoint';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { DeviceTensor, Engine, Program } from '@stillhouse/runtime';

/**
 * Keys and values of every layer for a batch of sequences, each [rows·kvHeads·slots, headDim]. Slot p of a row holds
 * position p; slots beyond a row's positions hold anything finite and are never attended to.
 */
export interface KeyValueStore {
  readonly rows: number;
  readonly slots: number;
  readonly keys: readonly DeviceTensor[];
  readonly values: readonly DeviceTensor[];
}

export function allocateStore(
  engine: Engine,
  config: ModelConfig,
  float: FloatDtype,
  rows: number,
  slots: number,
): KeyValueStore {
  const allocate = () =>
    Array.from({ length: config.layerCount }, () =>
      engine.allocate(float, [rows * config.kvHeadCount * slots, config.headDim]),
    );
  return { rows, slots, keys: allocate(), values: allocate() };
}

export function freeStore(engine: Engine, store: KeyValueStore): void {
  for (const tensor of [...store.keys, ...store.values]) engine.free(tensor);
}

/** int64 [rows·kvHeads·T, 1]: where the new keys of `positions` [rows · T] go, in order (row, KV head, column). */
export function slotRows(config: ModelConfig, slots: number, rows: number, positions: Int32Array): BigInt64Array {
  const { kvHeadCount } = config;
  const length = positions.length / rows;
  const target = new BigInt64Array(rows * kvHeadCount * length);
  for (let row = 0, n = 0; row < rows; row++) {
    for (let head = 0; head < kvHeadCount; head++) {
      const start = (row * kvHeadCount + head) * slots;
      for (let t = 0; t < length; t++) target[n++] = BigInt(start + positions[row * length + t]!);
    }
  }
  return target;
}

/**
 * The rows `keep` of a store, in that order, with another number of slots: drops finished sequences and makes room.
 * Layer by layer, so that only one layer exists twice. The old store is freed.
 * @param gather `gatherRowsGraph` of width headDim
 */
export async function rearrangeStore(
  engine: Engine,
  config: ModelConfig,
  gather: Program,
  store: KeyValueStore,
  keep: readonly number[],
  slots: number,
): Promise<KeyValueStore> {
  const { kvHeadCount, headDim } = config;
  const indices = new BigInt64Array(keep.length * kvHeadCount * slots);
  let n = 0;
  for (const row of keep) {
    for (let head = 0; head < kvHeadCount; head++) {
      const start = (row * kvHeadCount + head) * store.slots;
      // A slot that the old store did not have repeats its last: any finite content will do.
      for (let slot = 0; slot < slots; slot++) indices[n++] = BigInt(start + Math.min(slot, store.slots - 1));
    }
  }
  const uploaded = engine.upload(indices, 'int64', [indices.length]);
  const runs: Promise<void>[] = [];
  const move = (from: DeviceTensor) => {
    const to = engine.allocate(from.dtype, [indices.length, headDim]);
    runs.push(
      engine.run([{ kind: 'run', program: gather, inputs: { x: from, indices: uploaded }, outputs: { rows: to } }]),
    );
    engine.free(from);
    return to;
  };
  const moved = { rows: keep.length, slots, keys: store.keys.map(move), values: store.values.map(move) };
  engine.free(uploaded);
  try {
    await Promise.all(runs);
  } catch (error) {
    freeStore(engine, moved);
    throw error;
  }
  return moved;
}
