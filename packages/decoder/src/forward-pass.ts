import type { ModelConfig } from '@stillhouse/checkpoint';
import { encodeModel, type FloatDtype, type GraphBuilder, racesOnThreads } from '@stillhouse/onnx-graph';
import type { Call, DeviceTensor, Engine, Program } from '@stillhouse/runtime';
import type { LowRankAdapter } from './low-rank-adapter.ts';
import { blockGraph, embeddingGraph, finalNormGraph, gatherRowsGraph, segmentBiasGraph } from './model-graphs.ts';
import { computeRotaryTables } from './rotary.ts';
import type { TokenBatch } from './token-batch.ts';

/**
 * Compiles a graph under its own name, in the form that the engine's device wants; with one thread where more would
 * race, which only graphs that do little have.
 */
export function compileGraph(engine: Engine, graph: GraphBuilder): Promise<Program> {
  const { name } = graph;
  const model = encodeModel(graph, engine.device === 'cpu' ? 'any' : engine.device);
  return engine.compile(model, racesOnThreads(graph) ? { name, threads: 1 } : { name });
}

/** The programs of a forward pass: each compiled once, whatever the depth, and run with the weights of one layer. */
export interface ForwardPrograms {
  readonly config: ModelConfig;
  readonly float: FloatDtype;
  readonly bias: Program;
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
  const [bias, embedding, block, finalNorm, gatherRows] = await Promise.all(
    [
      segmentBiasGraph(float),
      embeddingGraph(config, float),
      blockGraph(config, float),
      finalNormGraph(config, float),
      gatherRowsGraph(config.hiddenSize, float),
    ].map((graph) => compileGraph(engine, graph)),
  );
  return {
    config,
    float,
    bias: bias!,
    embedding: embedding!,
    block: block!,
    adaptedBlock:
      adapter === undefined ? undefined : await compileGraph(engine, blockGraph(config, float, { adapter })),
    finalNorm: finalNorm!,
    gatherRows: gatherRows!,
  };
}

export function releaseForwardPrograms(programs: ForwardPrograms): void {
  const { bias, embedding, block, adaptedBlock, finalNorm, gatherRows } = programs;
  for (const program of [bias, embedding, block, adaptedBlock, finalNorm, gatherRows]) program?.release();
}

/** The weights of one layer and of its adapters on the device, by name below `model.layers.N.`. */
export type LayerTensors = Readonly<Record<string, DeviceTensor>>;

/** A batch on the device with the tables that every layer shares. */
export interface BatchTensors {
  /** B·T. */
  readonly tokens: number;
  readonly ids: DeviceTensor;
  readonly segments: DeviceTensor;
  readonly columns: DeviceTensor;
  readonly cos: DeviceTensor;
  readonly sin: DeviceTensor;
  readonly bias: DeviceTensor;
}

/** Uploads a batch and its rotary tables, and allocates the attention bias; `biasCall` fills it. */
export function uploadBatch(engine: Engine, programs: ForwardPrograms, batch: TokenBatch): BatchTensors {
  const { rows, length } = batch;
  const { float, config } = programs;
  const table = [rows, length, config.headDim / 2];
  const { cos, sin } = computeRotaryTables(config, batch.positions, float);
  return {
    tokens: rows * length,
    ids: engine.upload(batch.ids, 'int64', [rows * length]),
    segments: engine.upload(batch.segments, 'int32', [rows, length]),
    columns: engine.upload(
      Int32Array.from({ length }, (_, t) => t),
      'int32',
      [length],
    ),
    cos: engine.upload(cos, float, table, { transfer: true }),
    sin: engine.upload(sin, float, table, { transfer: true }),
    bias: engine.allocate(float, [rows, 1, 1, length, length]),
  };
}

export function freeBatch(engine: Engine, batch: BatchTensors): void {
  const { ids, segments, columns, cos, sin, bias } = batch;
  for (const tensor of [ids, segments, columns, cos, sin, bias]) engine.free(tensor);
}

export function biasCall(programs: ForwardPrograms, batch: BatchTensors): Call {
  const { segments, columns, bias } = batch;
  return { kind: 'run', program: programs.bias, inputs: { segments, columns }, outputs: { bias } };
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

/** Compiles a layer that also gives what attention adds to the residual stream. */
export function compileExposingBlock(
  engine: Engine,
  { config, float }: ForwardPrograms,
  adapter?: LowRankAdapter,
): Promise<Program> {
  const adapted = adapter === undefined ? {} : { adapter };
  return compileGraph(engine, blockGraph(config, float, { exposesAttention: true, ...adapted }));
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
