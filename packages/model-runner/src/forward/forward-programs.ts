import type { ModelConfig } from '@stillhouse/checkpoint';
import {
  blockGraph,
  embeddingGraph,
  finalNormGraph,
  gatherRowsGraph,
  type LowRankAdapter,
  type PerQueryBlocks,
  perQueryBlocks,
  segmentBiasGraph,
} from '@stillhouse/decoder';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { DeviceTensor, Engine, Program } from '@stillhouse/runtime';
import type { TokenBatch } from '../batches/token-batch.ts';

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
  /**
   * A layer without adapters, and with; the second only where the model has any. Compiled when they are first asked
   * for.
   */
  readonly block: PerQueryBlocks<Program>;
  readonly adaptedBlock: PerQueryBlocks<Program> | undefined;
  readonly finalNorm: Program;
  readonly gatherRows: Program;
}

/**
 * Compiles the programs of a model. Layers are compiled when a number of query blocks is first asked for.
 * @param float dtype of weights and activations
 * @param adapter where layers may have adapters
 * @returns to be released by `releaseForwardPrograms`
 */
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

/** Releases all programs, those of layers that were made included. */
export function releaseForwardPrograms(programs: ForwardPrograms): void {
  const { bias, embedding, block, adaptedBlock, finalNorm, gatherRows } = programs;
  const layers = [...block.made, ...(adaptedBlock?.made ?? [])];
  for (const program of [bias, embedding, ...layers, finalNorm, gatherRows]) program.release();
}

/** The weights of one layer and of its adapters on the device, by local name. */
export type LayerTensors = Readonly<Record<string, DeviceTensor>>;

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
