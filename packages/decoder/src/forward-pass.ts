import type { ModelConfig } from '@stillhouse/checkpoint';
import { encodeModel, type FloatDtype, type GraphBuilder, racesOnThreads } from '@stillhouse/onnx-graph';
import type { Call, DeviceTensor, Engine, Program } from '@stillhouse/runtime';
import type { LowRankAdapter } from './low-rank-adapter.ts';
import { batchTablesGraph, blockGraph, embeddingGraph, finalNormGraph, gatherRowsGraph } from './model-graphs.ts';
import type { TokenBatch } from './token-batch.ts';

/**
 * Compiles a graph under its own name; with one thread where more would race, which only graphs that do little have.
 */
export function compileGraph(engine: Engine, graph: GraphBuilder): Promise<Program> {
  const name = graph.name;
  return engine.compile(encodeModel(graph), racesOnThreads(graph) ? { name, threads: 1 } : { name });
}

/** The programs of a forward pass: each compiled once, whatever the depth, and run with the weights of one layer. */
export interface ForwardPrograms {
  readonly config: ModelConfig;
  readonly float: FloatDtype;
  readonly tables: Program;
  readonly embedding: Program;
  readonly block: Program;
  /** A layer with adapters; only where the model has any. */
  readonly adaptedBlock: Program | undefined;
  readonly finalNorm: Program;
  readonly gatherRows: Program;
}

export async function compileForwardPrograms(
  engine: Engine,
  config: ModelConfig,
  float: FloatDtype,
  adapter?: LowRankAdapter,
): Promise<ForwardPrograms> {
  const [tables, embedding, block, finalNorm, gatherRows] = await Promise.all(
    [
      batchTablesGraph(config, float),
      embeddingGraph(config, float),
      blockGraph(config, float),
      finalNormGraph(config, float),
      gatherRowsGraph(config.hiddenSize, float),
    ].map((graph) => compileGraph(engine, graph)),
  );
  return {
    config,
    float,
    tables: tables!,
    embedding: embedding!,
    block: block!,
    adaptedBlock:
      adapter === undefined ? undefined : await compileGraph(engine, blockGraph(config, float, { adapter })),
    finalNorm: finalNorm!,
    gatherRows: gatherRows!,
  };
}

export function releaseForwardPrograms(programs: ForwardPrograms): void {
  const { tables, embedding, block, adaptedBlock, finalNorm, gatherRows } = programs;
  for (const program of [tables, embedding, block, adaptedBlock, finalNorm, gatherRows]) program?.release();
}

/** The weights of one layer and of its adapters on the device, by name below `model.layers.N.`. */
export type LayerTensors = Readonly<Record<string, DeviceTensor>>;

/** A batch on the device with the tables that every layer shares. */
export interface BatchTensors {
  /** B·T. */
  readonly tokens: number;
  readonly ids: DeviceTensor;
  readonly positions: DeviceTensor;
  readonly segments: DeviceTensor;
  readonly columns: DeviceTensor;
  readonly cos: DeviceTensor;
  readonly sin: DeviceTensor;
  readonly bias: DeviceTensor;
}

/** Uploads a batch and allocates its tables; `tablesCall` fills them. */
export function uploadBatch(engine: Engine, programs: ForwardPrograms, batch: TokenBatch): BatchTensors {
  const { rows, length } = batch;
  const { float, config } = programs;
  const table = [rows, length, 1, config.headDim / 2];
  return {
    tokens: rows * length,
    ids: engine.upload(batch.ids, 'int64', [rows * length]),
    positions: engine.upload(batch.positions, 'int64', [rows, length]),
    segments: engine.upload(batch.segments, 'int64', [rows, length]),
    columns: engine.upload(
      BigInt64Array.from({ length }, (_, t) => BigInt(t)),
      'int64',
      [length],
    ),
    cos: engine.allocate(float, table),
    sin: engine.allocate(float, table),
    bias: engine.allocate(float, [rows, 1, 1, length, length]),
  };
}

export function freeBatch(engine: Engine, batch: BatchTensors): void {
  const { ids, positions, segments, columns, cos, sin, bias } = batch;
  for (const tensor of [ids, positions, segments, columns, cos, sin, bias]) engine.free(tensor);
}

export function tablesCall(programs: ForwardPrograms, batch: BatchTensors): Call {
  const { positions, segments, columns, cos, sin, bias } = batch;
  return {
    kind: 'run',
    program: programs.tables,
    inputs: { positions, segments, columns },
    outputs: { cos, sin, bias },
  };
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

/** y [B·T, H] = layer(x). */
export function blockCall(
  programs: ForwardPrograms,
  batch: BatchTensors,
  weights: LayerTensors,
  x: DeviceTensor,
  y: DeviceTensor,
): Call {
  const { cos, sin, bias } = batch;
  const isAdapted = Object.keys(weights).some((name) => name.endsWith('.lora_A.weight'));
  const program = isAdapted ? programs.adaptedBlock : programs.block;
  if (program === undefined) throw new Error('a layer has adapters and the programs were compiled without');
  return { kind: 'run', program, inputs: { x, cos, sin, bias, ...weights }, outputs: { y } };
}
