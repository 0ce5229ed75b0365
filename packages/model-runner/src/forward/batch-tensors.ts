import { isAdapterName } from '@stillhouse/checkpoint';
import { computeRotaryTables } from '@stillhouse/decoder';
import type { Call, DeviceTensor, Engine } from '@stillhouse/runtime';
import type { TokenBatch } from '../batches/token-batch.ts';
import type { ForwardPrograms, LayerPrograms, LayerTensors } from './forward-programs.ts';

/** A batch on the device with the tables that every layer shares. */
export interface BatchTensors {
  /** B·T. */
  readonly tokens: number;
  readonly queryBlocks: number;
  readonly ids: DeviceTensor;
  /**
   * Inputs of a layer's programs that have an entry for each row: cos, sin, and `bias` or, for query blocks,
   * `segments`.
   */
  readonly tables: Readonly<Record<string, DeviceTensor>>;
  /** Inputs of a layer's programs that all rows share: `columns`, for query blocks. */
  readonly shared: Readonly<Record<string, DeviceTensor>>;
  /** What fills the bias in, where one block attends; before any layer. */
  readonly biasCalls: readonly Call[];
  /** All that `freeBatch` frees. */
  readonly all: readonly DeviceTensor[];
}

/** Uploads a batch and its rotary tables. Where one block attends the bias is allocated; `biasCalls` fill it. */
export function uploadBatch(engine: Engine, programs: ForwardPrograms, batch: TokenBatch): BatchTensors {
  const { rows, length, queryBlocks } = batch;
  const { float, config } = programs;
  const table = [rows, length, config.headDim / 2];
  const rotary = computeRotaryTables(config, batch.positions, float);
  const ids = engine.upload(batch.ids, 'int64', [rows * length]);
  const cos = engine.upload(rotary.cos, float, table, { transfer: true });
  const sin = engine.upload(rotary.sin, float, table, { transfer: true });
  const isWhole = queryBlocks === 1;
  const blocks = isWhole ? [length] : [queryBlocks, length / queryBlocks];
  const segments = engine.upload(batch.segments, 'int32', [rows, ...blocks]);
  const columns = engine.upload(
    Int32Array.from({ length }, (_, t) => t),
    'int32',
    blocks,
  );
  const common = { tokens: rows * length, queryBlocks, ids };
  const all = [ids, cos, sin, segments, columns];
  if (!isWhole) return { ...common, tables: { cos, sin, segments }, shared: { columns }, biasCalls: [], all };
  const bias = engine.allocate(float, [rows, 1, 1, length, length]);
  const call: Call = { kind: 'run', program: programs.bias, inputs: { segments, columns }, outputs: { bias } };
  return { ...common, tables: { cos, sin, bias }, shared: {}, biasCalls: [call], all: [...all, bias] };
}

/** Frees what `uploadBatch` made. The batch must not be used any more after it. */
export function freeBatch(engine: Engine, { all }: BatchTensors): void {
  for (const tensor of all) engine.free(tensor);
}

/** x [B·T, H] = rows of the embedding table. */
export function embeddingCall(
  programs: ForwardPrograms,
  batch: BatchTensors,
  table: DeviceTensor,
  x: DeviceTensor,
): Call {
  return { kind: 'run', program: programs.embedding, inputs: { ids: batch.ids, table }, outputs: { x } };
}

/** What a layer reads and writes: y [B·T, H] = layer(x); y may be x. */
export interface LayerOperands {
  readonly weights: LayerTensors;
  readonly x: DeviceTensor;
  readonly y: DeviceTensor;
}

/** A batch through one layer. */
export function blockCall(
  layer: LayerPrograms,
  { tables, shared }: BatchTensors,
  { weights, x, y }: LayerOperands,
): Call & { readonly kind: 'run' } {
  const isAdapted = Object.keys(weights).some(isAdapterName);
  const program = isAdapted ? layer.adaptedBlock : layer.block;
  if (program === undefined) throw new Error('a layer has adapters and the programs were compiled without');
  return { kind: 'run', program, inputs: { x, ...tables, ...shared, ...weights }, outputs: { y } };
}
