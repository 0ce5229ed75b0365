import type { ModelConfig } from '@stillhouse/checkpoint';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { Call, DeviceTensor, Engine, Program } from '@stillhouse/runtime';

/**
 * Keys and values of every layer for some rows, each [rows·kvHeads·slots, headDim]. A row holds one sequence at a time:
 * slot p has its position p; slots beyond its positions hold anything finite and are never attended to.
 */
export interface KeyValueStore {
  readonly rows: number;
  readonly slots: number;
  readonly keys: readonly DeviceTensor[];
  readonly values: readonly DeviceTensor[];
}

type StoreShape = Pick<KeyValueStore, 'rows' | 'slots'>;

export function allocateStore(
  engine: Engine,
  config: ModelConfig,
  float: FloatDtype,
  { rows, slots }: StoreShape,
): KeyValueStore {
  const allocate = () =>
    Array.from({ length: config.layerCount }, () =>
      engine.allocate(float, [rows * config.kvHeadCount * slots, config.headDim]),
    );
  return { rows, slots, keys: allocate(), values: allocate() };
}

/** Of a store that is a view of another, only the view ends. */
export function freeStore(engine: Engine, store: KeyValueStore): void {
  for (const tensor of [...store.keys, ...store.values]) engine.free(tensor);
}

/** Some neighbouring rows of a store as a store of their own, in the same memory; to be freed before the whole. */
export function viewRows(
  engine: Engine,
  config: ModelConfig,
  store: KeyValueStore,
  { first, rows }: { readonly first: number; readonly rows: number },
): KeyValueStore {
  const perRow = config.kvHeadCount * store.slots;
  const part = { offset: first * perRow * config.headDim, shape: [rows * perRow, config.headDim] };
  const view = (tensor: DeviceTensor) => engine.view(tensor, part);
  return { rows, slots: store.slots, keys: store.keys.map(view), values: store.values.map(view) };
}

/** One row's keys and values over another's. */
export async function copyRow(
  engine: Engine,
  config: ModelConfig,
  store: KeyValueStore,
  { from, to }: { readonly from: number; readonly to: number },
): Promise<void> {
  const source = viewRows(engine, config, store, { first: from, rows: 1 });
  const target = viewRows(engine, config, store, { first: to, rows: 1 });
  const copies = (ofSource: readonly DeviceTensor[], ofTarget: readonly DeviceTensor[]) =>
    ofSource.map((tensor, layer): Call => ({ kind: 'copy', from: tensor, to: ofTarget[layer]! }));
  await engine.run([...copies(source.keys, target.keys), ...copies(source.values, target.values)]);
  for (const view of [source, target]) freeStore(engine, view);
}

/** int64 [rows·kvHeads·T, 1]: where the new keys of `positions` [rows · T] go, in order (row, KV head, column). */
export function slotRows(config: ModelConfig, { slots, rows }: StoreShape, positions: Int32Array): BigInt64Array {
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
 * A store with more slots. Layer by layer, so that only one layer exists twice. The old store is freed.
 * @param gather `gatherRowsGraph` of width headDim
 */
export async function growStore(
  engine: Engine,
  { kvHeadCount, headDim }: ModelConfig,
  store: KeyValueStore,
  { gather, slots }: { readonly gather: Program; readonly slots: number },
): Promise<KeyValueStore> {
  const count = store.rows * kvHeadCount * slots;
  // A slot that the old store did not have repeats its last: any finite content will do.
  const indices = BigInt64Array.from({ length: count }, (_, n) =>
    BigInt(Math.floor(n / slots) * store.slots + Math.min(n % slots, store.slots - 1)),
  );
  const uploaded = engine.upload(indices, 'int64', [count]);
  const runs: Promise<void>[] = [];
  const move = (from: DeviceTensor) => {
    const to = engine.allocate(from.dtype, [count, headDim]);
    const inputs = { x: from, indices: uploaded };
    runs.push(engine.run([{ kind: 'run', program: gather, inputs, outputs: { rows: to } }]));
    engine.free(from);
    return to;
  };
  const grown = { rows: store.rows, slots, keys: store.keys.map(move), values: store.values.map(move) };
  engine.free(uploaded);
  try {
    await Promise.all(runs);
  } catch (error) {
    freeStore(engine, grown);
    throw error;
  }
  return grown;
}
