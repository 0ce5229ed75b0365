import { ATTENTION_OUTPUT, type PerQueryBlocks } from '@stillhouse/decoder';
import type { Call, DeviceTensor, Engine, Program } from '@stillhouse/runtime';
import { planBatches } from '../batches/batch-plan.ts';
import { flatIndex, packSequences, type TokenBatch } from '../batches/token-batch.ts';
import { type BatchTensors, blockCall, freeBatch, uploadBatch } from '../forward/batch-tensors.ts';
import {
  type ForwardPrograms,
  type LayerPrograms,
  type LayerTensors,
  takeLayerPrograms,
} from '../forward/forward-programs.ts';
import type { StreamedWeights } from '../weights/streamed-weights.ts';

/** A row as a pass needs it. */
export interface PassRow {
  /** [L] */
  readonly inputIds: Int32Array;
  /** Ascending, each below L: the positions whose states are wanted. */
  readonly positions: Int32Array;
}

/** What a pass runs with. */
export interface StreamedPassOptions {
  readonly engine: Engine;
  readonly programs: ForwardPrograms;
  readonly weights: StreamedWeights;
  /** Tokens that go through a layer together; bounds the working memory. */
  readonly batchTokens: number;
  /** How a batch is laid out; `packSequences` if not given. */
  readonly layOut?: (sequences: readonly Int32Array[]) => TokenBatch;
  /** A layer with its attention output; needed where that is wanted. */
  readonly exposing?: PerQueryBlocks<Program> | undefined;
}

/** What is wanted of one layer, and who hears of it. */
export interface LayerRun {
  /** Told the tokens of each batch when it is done. */
  readonly onBatch?: (tokens: number) => void;
  /** Called when the layer's weights are there: starts to read what comes next. */
  readonly prefetch?: () => void;
  /** Whether the attention output of the layer is wanted. */
  readonly exposesAttention?: boolean;
}

/** The residual streams of some rows on the device, taken through the layers together. */
export interface StreamedPass {
  /** Wanted positions of all rows. */
  readonly stateCount: number;
  /** Where each row's states are among those of the pass, [start, end), in the order of the rows. */
  readonly ranges: readonly { readonly start: number; readonly end: number }[];
  /**
   * Takes every batch through layer `layer`, from 0. Reads no weights where no position is wanted.
   * @returns where it is wanted, the attention output at the wanted positions, [stateCount, hiddenSize], to be freed
   */
  runLayer(layer: number, run?: LayerRun): Promise<DeviceTensor | undefined>;
  /** The residual stream at the wanted positions, [stateCount, hiddenSize]; the same tensor at each call. */
  gatherStates(): Promise<DeviceTensor>;
  /**
   * Ends the streams: their states at the wanted positions behind the final norm, [stateCount, hiddenSize], to be
   * freed. Reads no weights where no position is wanted.
   */
  finishStates(): Promise<DeviceTensor>;
  close(): void;
}

interface PassBatch {
  readonly programsOfLayer: LayerPrograms;
  readonly tensors: BatchTensors;
  /** A layer with its attention output, where that of some layer is wanted. */
  readonly exposing: Program | undefined;
  /** [tokens, hiddenSize], overwritten layer by layer. */
  readonly x: DeviceTensor;
  /** int64: where the wanted positions are in `x`. */
  readonly indices: DeviceTensor;
  /** Of these, the first one's place among all of the pass. */
  readonly firstState: number;
  readonly realTokens: number;
}

/** The rows of a batch and where their states go. */
interface PlacedBatch {
  readonly batch: TokenBatch;
  readonly indices: BigInt64Array<ArrayBuffer>;
  readonly firstState: number;
  readonly realTokens: number;
}

/**
 * Lays rows out and embeds them. What no wanted position depends on is left out: rows without one, and what comes
 * after a row's last one.
 */
export async function openStreamedPass(rows: readonly PassRow[], options: StreamedPassOptions): Promise<StreamedPass> {
  const { engine, programs, weights } = options;
  const { placed, ranges, stateCount } = placeRows(rows, options);
  const batches: PassBatch[] = [];
  try {
    const embeddings = await weights.embed(placed.map(({ batch }) => batch.ids));
    for (const [i, one] of placed.entries()) batches.push(await openBatch(options, one, embeddings[i]!));
  } catch (error) {
    closeBatches(engine, batches);
    throw error;
  }
  const { hiddenSize } = programs.config;
  const states = engine.allocate(programs.float, [stateCount, hiddenSize]);
  const gatherStates = async () => {
    await engine.run(batches.map((batch) => gatherCall(options, batch, batch.x, states)));
    return states;
  };
  return {
    stateCount,
    ranges,
    runLayer: (layer, run = {}) => runLayer(options, { batches, stateCount }, layer, run),
    gatherStates,
    finishStates: async () => {
      const x = await gatherStates();
      closeBatches(engine, batches);
      return normalise(options, x);
    },
    close: () => {
      closeBatches(engine, batches);
      engine.free(states);
    },
  };
}

/** Which rows go together, and where the states of each are. */
function placeRows(rows: readonly PassRow[], { batchTokens, layOut = packSequences }: StreamedPassOptions) {
  const sequences = rows.map(({ inputIds, positions }) => inputIds.subarray(0, (positions.at(-1) ?? -1) + 1));
  const used = rows.flatMap((_, i) => (sequences[i]!.length === 0 ? [] : [i]));
  const lengths = used.map((i) => sequences[i]!.length);
  const ranges = rows.map(() => ({ start: 0, end: 0 }));
  let stateCount = 0;
  const placed = planBatches(lengths, batchTokens).map((members): PlacedBatch => {
    const ofBatch = members.map((i) => used[i]!);
    const batch = layOut(ofBatch.map((row) => sequences[row]!));
    const firstState = stateCount;
    const indices = ofBatch.flatMap((row, sequence) => {
      const { positions } = rows[row]!;
      ranges[row] = { start: stateCount, end: stateCount + positions.length };
      stateCount += positions.length;
      return Array.from(positions, (position) => BigInt(flatIndex(batch, batch.placements[sequence]!, position)));
    });
    const realTokens = ofBatch.reduce((sum, row) => sum + rows[row]!.inputIds.length, 0);
    return { batch, indices: BigInt64Array.from(indices), firstState, realTokens };
  });
  return { placed, ranges, stateCount };
}

async function openBatch(
  { engine, programs, exposing }: StreamedPassOptions,
  { batch, indices, firstState, realTokens }: PlacedBatch,
  embeddings: Float32Array<ArrayBuffer> | Float64Array<ArrayBuffer>,
): Promise<PassBatch> {
  const withAttention = await exposing?.take(batch.queryBlocks);
  const programsOfLayer = await takeLayerPrograms(programs, batch);
  const tensors = uploadBatch(engine, programs, batch);
  const shape = [tensors.tokens, programs.config.hiddenSize];
  const x = engine.upload(embeddings, programs.float, shape, { transfer: true });
  const places = engine.upload(indices, 'int64', [indices.length]);
  await engine.run(tensors.biasCalls);
  return { programsOfLayer, tensors, exposing: withAttention, x, indices: places, firstState, realTokens };
}

function closeBatches(engine: Engine, batches: PassBatch[]): void {
  for (const { tensors, x, indices } of batches.splice(0)) {
    freeBatch(engine, tensors);
    engine.free(x);
    engine.free(indices);
  }
}

/** The rows of `x` at the wanted positions of a batch, into their place among those of the pass. */
function gatherCall(
  { engine, programs }: StreamedPassOptions,
  { indices, firstState }: PassBatch,
  x: DeviceTensor,
  into: DeviceTensor,
): Call {
  const { hiddenSize } = programs.config;
  const shape = [indices.shape[0]!, hiddenSize];
  const rows = engine.view(into, { offset: firstState * hiddenSize, shape });
  return { kind: 'run', program: programs.gatherRows, inputs: { x, indices }, outputs: { rows } };
}

/** @param x [n, hiddenSize], n may be 0 */
async function normalise({ engine, programs, weights }: StreamedPassOptions, x: DeviceTensor): Promise<DeviceTensor> {
  const hidden = engine.allocate(programs.float, x.shape);
  if (x.shape[0] === 0) return hidden;
  try {
    const norm = await weights.takeFinalNorm();
    await engine.run([{ kind: 'run', program: programs.finalNorm, inputs: { x, norm }, outputs: { hidden } }]);
    return hidden;
  } catch (error) {
    engine.free(hidden);
    throw error;
  }
}

async function runLayer(
  options: StreamedPassOptions,
  { batches, stateCount }: { readonly batches: readonly PassBatch[]; readonly stateCount: number },
  layer: number,
  { onBatch, prefetch, exposesAttention = false }: LayerRun,
): Promise<DeviceTensor | undefined> {
  if (batches.length === 0) return undefined;
  const { engine, programs, weights } = options;
  const ofLayer = await weights.takeLayer(layer);
  prefetch?.();
  const shape = [stateCount, programs.config.hiddenSize];
  const attention = exposesAttention ? engine.allocate(programs.float, shape) : undefined;
  for (const batch of batches) {
    if (attention === undefined) await engine.run([inPlace(batch, ofLayer)]);
    else await runExposing(options, batch, ofLayer, attention);
    onBatch?.(batch.realTokens);
  }
  weights.dropLayer(layer);
  return attention;
}

/** In place: all that reads x comes before the product that writes the result. */
const inPlace = ({ programsOfLayer, tensors, x }: PassBatch, weights: LayerTensors) =>
  blockCall(programsOfLayer, tensors, { weights, x, y: x });

async function runExposing(
  options: StreamedPassOptions,
  batch: PassBatch,
  weights: LayerTensors,
  into: DeviceTensor,
): Promise<void> {
  const { engine, programs } = options;
  const { x, exposing, tensors } = batch;
  const output = engine.allocate(programs.float, [tensors.tokens, programs.config.hiddenSize]);
  const call = { ...inPlace(batch, weights), program: exposing!, outputs: { y: x, [ATTENTION_OUTPUT]: output } };
  await engine.run([call, gatherCall(options, batch, output, into)]);
  engine.free(output);
}
