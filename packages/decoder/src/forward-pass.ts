import { isAdapterName, type ModelConfig } from '@stillhouse/checkpoint';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { Call, DeviceTensor, Engine, Program } from '@stillhouse/runtime';
import type { LowRankAdapter } from './low-rank-adapter.ts';
import { blockGraph, embeddingGraph, finalNormGraph, gatherRowsGraph, segmentBiasGraph } from './model-graphs.ts';
import { type PerQueryBlocks, perQueryBlocks } from './query-blocks.ts';
import { computeRotaryTables } from './rotary.ts';
import type { TokenBatch } from './token-batch.ts';

/** The programs that take batches of one number of query blocks through a layer. */
export interface LayerPrograms {
  readonly block: Program;
  /** A layer with adapters; only where the model has any. */
  readonly adaptedBlock: Program | undefined;
}

/** The programs of a forward pass: each compiled once, whatever the depth, and run with the weights of one layer. */
export interface ForwardPrograms {
  readonly config: ModelConfig;
  readonly float: FloatDtype;
  readonly bias: Program;
  readonly embedding: Program;
  /** A layer without adapters, and with; the second only where the model has any. Compiled when they are first asked for. */
  readonly block: PerQueryBlocks<Program>;
  readonly adaptedBlock: PerQueryBlocks<Program> | undefined;
  readonly finalNorm: Program;
  readonly gatherRows: Program;
}

export async function compileForwardPrograms(
  engine: Engine,
  config: ModelConfig,
  float: FloatDtype,
  adapter?: LowRankAdapter,
): Promise<ForwardPrograms> {
  const [bias, embedding, finalNorm, gatherRows] = await Promise.all(
    [
      segmentBiasGraph(float),
      embeddingGraph(config, float),
      finalNormGraph(config, float),
      gatherRowsGraph(config.hiddenSize, float),
    ].map((graph) => engine.compile(graph)),
  );
  const compileBlock = (options: { readonly adapter?: LowRankAdapter }) =>
    perQueryBlocks((queryBlocks) => engine.compile(blockGraph(config, float, { queryBlocks, ...options })));
  return {
    ...{ config, float },
    block: compileBlock({}),
    adaptedBlock: adapter === undefined ? undefined : compileBlock({ adapter }),
    bias: bias!,
    embedding: embedding!,
    finalNorm: finalNorm!,
    gatherRows: gatherRows!,
  };
}

export function releaseForwardPrograms(programs: ForwardPrograms): void {
  const { bias, embedding, block, adaptedBlock, finalNorm, gatherRows } = programs;
  const layers = [...block.made, ...(adaptedBlock?.made ?? [])];
  for (const program of [bias, embedding, ...layers, finalNorm, gatherRows]) program.release();
}

/** The weights of one layer and of its adapters on the device, by local name. */
export type LayerTensors = Readonly<Record<string, DeviceTensor>>;

/** A batch on the device with the tables that every layer shares. */
export interface BatchTensors {
  /** B·T. */
  readonly tokens: number;
  readonly queryBlocks: number;
  readonly ids: DeviceTensor;
  /** Inputs of a layer's programs that have an entry for each row: cos, sin, and `bias` or, for query blocks, `segments`. */
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

/** A layer that also gives what attention adds to the residual stream. */
export function exposingBlocks(
  engine: Engine,
  { config, float }: ForwardPrograms,
  adapter?: LowRankAdapter,
): PerQueryBlocks<Program> {
  const adapted = adapter === undefined ? {} : { adapter };
  return perQueryBlocks((queryBlocks) =>
    engine.compile(blockGraph(config, float, { queryBlocks, exposesAttention: true, ...adapted })),
  );
}

/** The programs for {@link blockCall}, compiled if the batch is the first of its number of query blocks. */
export async function takeLayerPrograms(
  { block, adaptedBlock }: ForwardPrograms,
  { queryBlocks }: Pick<TokenBatch, 'queryBlocks'>,
): Promise<LayerPrograms> {
  return { block: await block.take(queryBlocks), adaptedBlock: await adaptedBlock?.take(queryBlocks) };
}

/** y [B·T, H] = layer(x). */
export function blockCall(
  layer: LayerPrograms,
  { tables, shared }: BatchTensors,
  weights: LayerTensors,
  { x, y }: { readonly x: DeviceTensor; readonly y: DeviceTensor },
): Call {
  const isAdapted = Object.keys(weights).some(isAdapterName);
  const program = isAdapted ? layer.adaptedBlock : layer.block;
  if (program === undefined) throw new Error('a layer has adapters and the programs were compiled without');
  return { kind: 'run', program, inputs: { x, ...tables, ...shared, ...weights }, outputs: { y } };
}
