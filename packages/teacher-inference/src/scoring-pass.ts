import type { ModelConfig } from '@stillhouse/checkpoint';
import {
  ATTENTION_OUTPUT,
  type BatchTensors,
  blockCall,
  type ForwardPrograms,
  flatIndex,
  freeBatch,
  type LayerPrograms,
  type LayerTensors,
  type PerQueryBlocks,
  type TokenBatch,
  takeLayerPrograms,
  uploadBatch,
} from '@stillhouse/decoder';
import type { Call, DeviceTensor, Engine, Program } from '@stillhouse/runtime';
import { targetsOf } from '@stillhouse/teacher-cache';
import { planBatches } from './batch-plan.ts';
import type { LabelRange } from './label-range.ts';
import type { TeacherWeights } from './teacher-weights.ts';

/** A row as a pass needs it: ids and the positions whose labels are wanted. */
export interface PassRow {
  readonly id: string;
  readonly inputIds: Int32Array;
  readonly positions: Int32Array;
}

export interface PassOptions {
  readonly batchTokens: number;
  readonly layOut: (sequences: readonly Int32Array[]) => TokenBatch;
  /** Embeddings of the tokens of each batch, [ids, hiddenSize]. */
  readonly embed: TeacherWeights['embed'];
  /** A layer with its attention output; needed where that is wanted. */
  readonly exposing?: PerQueryBlocks<Program> | undefined;
}

/** The residual streams of some rows on the device, taken through the layers together. */
export interface ScoringPass {
  readonly labelCount: number;
  /** Where each row's label positions are in `labelStates`, in the order of the rows. */
  readonly ranges: readonly LabelRange[];
  /**
   * Takes every batch through one layer; `onBatch` hears of the tokens done.
   * @returns where the attention output is wanted, that at the label positions, [labelCount, hiddenSize], to be freed
   */
  runLayer(
    weights: LayerTensors,
    onBatch: (tokens: number) => void,
    wantsAttention?: boolean,
  ): Promise<DeviceTensor | undefined>;
  /** The residual stream at the label positions, [labelCount, hiddenSize]; the same tensor at each call. */
  gatherLabelStates(): Promise<DeviceTensor>;
  /** Frees everything but the label states. */
  closeStreams(): void;
  close(): void;
}

interface PassBatch {
  readonly programsOfLayer: LayerPrograms;
  readonly tensors: BatchTensors;
  /** A layer with its attention output, where that of some layer is wanted. */
  readonly exposing: Program | undefined;
  /** [tokens, hiddenSize], overwritten layer by layer. */
  readonly x: DeviceTensor;
  /** int64: where the label positions are in `x`. */
  readonly indices: DeviceTensor;
  /** Of these, the first one's place among all of the pass. */
  readonly firstLabel: number;
  readonly realTokens: number;
}

/**
 * Lays rows out and embeds them. What no label depends on is left out: rows without a label position, and what comes
 * after a row's last one.
 */
export async function openScoringPass(
  engine: Engine,
  programs: ForwardPrograms,
  rows: readonly PassRow[],
  options: PassOptions,
): Promise<ScoringPass> {
  const { hiddenSize } = programs.config;
  const sequences = rows.map(({ inputIds, positions }) => inputIds.subarray(0, (positions.at(-1) ?? -1) + 1));
  const used = rows.flatMap((_, i) => (sequences[i]!.length === 0 ? [] : [i]));
  const plan = planBatches(
    used.map((i) => sequences[i]!.length),
    options.batchTokens,
  ).map((batch) => batch.map((i) => used[i]!));
  const ranges: LabelRange[] = rows.map((row) => ({
    rowId: row.id,
    start: 0,
    end: 0,
    positions: row.positions,
    targets: targetsOf(row, row.positions),
  }));
  const batches: PassBatch[] = [];
  let labelCount = 0;

  async function openBatch(members: readonly number[], batch: TokenBatch, embeddings: Float32Array<ArrayBuffer>) {
    const indices: bigint[] = [];
    const firstLabel = labelCount;
    members.forEach((row, sequence) => {
      const { positions } = rows[row]!;
      const placement = batch.placements[sequence]!;
      for (const position of positions) indices.push(BigInt(flatIndex(batch, placement, position)));
      ranges[row] = { ...ranges[row]!, start: labelCount, end: labelCount + positions.length };
      labelCount += positions.length;
    });
    const exposing = await options.exposing?.take(batch.queryBlocks);
    const programsOfLayer = await takeLayerPrograms(programs, batch);
    const tensors = uploadBatch(engine, programs, batch);
    const x = engine.upload(embeddings, 'float32', [tensors.tokens, hiddenSize], { transfer: true });
    const places = engine.upload(BigInt64Array.from(indices), 'int64', [indices.length]);
    const realTokens = members.reduce((sum, row) => sum + rows[row]!.inputIds.length, 0);
    batches.push({ programsOfLayer, tensors, exposing, x, indices: places, firstLabel, realTokens });
    await engine.run(tensors.biasCalls);
  }

  function closeStreams(): void {
    for (const { tensors, x, indices } of batches.splice(0)) {
      freeBatch(engine, tensors);
      engine.free(x);
      engine.free(indices);
    }
  }

  try {
    const laidOut = plan.map((members) => options.layOut(members.map((row) => sequences[row]!)));
    const embeddings = await options.embed(laidOut.map(({ ids }) => ids));
    for (const [i, members] of plan.entries()) await openBatch(members, laidOut[i]!, embeddings[i]!);
  } catch (error) {
    closeStreams();
    throw error;
  }
  /** The rows of `x` at the label positions of a batch, into their place among those of the pass. */
  const gatherCall = ({ indices, firstLabel }: PassBatch, x: DeviceTensor, into: DeviceTensor): Call => {
    const shape = [indices.shape[0]!, hiddenSize];
    const rows = engine.view(into, { offset: firstLabel * hiddenSize, shape });
    return { kind: 'run', program: programs.gatherRows, inputs: { x, indices }, outputs: { rows } };
  };
  const labelStates = engine.allocate('float32', [labelCount, hiddenSize]);
  return {
    labelCount,
    ranges,
    runLayer: async (weights, onBatch, wantsAttention = false) => {
      const outputs = wantsAttention ? engine.allocate('float32', [labelCount, hiddenSize]) : undefined;
      for (const batch of batches) {
        const { programsOfLayer, tensors, exposing, x, realTokens } = batch;
        // In place: all that reads x comes before the product that writes the result.
        const call = blockCall(programsOfLayer, tensors, weights, { x, y: x });
        if (outputs === undefined) await engine.run([call]);
        else {
          const output = engine.allocate('float32', [tensors.tokens, hiddenSize]);
          const outputsToo = { ...call, program: exposing!, outputs: { y: x, [ATTENTION_OUTPUT]: output } };
          await engine.run([outputsToo, gatherCall(batch, output, outputs)]);
          engine.free(output);
        }
        onBatch(realTokens);
      }
      return outputs;
    },
    gatherLabelStates: async () => {
      await engine.run(batches.map((batch) => gatherCall(batch, batch.x, labelStates)));
      return labelStates;
    },
    closeStreams,
    close: () => {
      closeStreams();
      engine.free(labelStates);
    },
  };
}

/** Multiply-adds of the weights that one token meets in a layer, and one label position in the output matrix. */
export function measureWork(config: ModelConfig): { readonly layer: number; readonly readout: number } {
  const { hiddenSize, intermediateSize, headCount, kvHeadCount, headDim, vocabSize } = config;
  const attention = 2 * hiddenSize * headDim * (headCount + kvHeadCount);
  return { layer: attention + 3 * hiddenSize * intermediateSize, readout: hiddenSize * vocabSize };
}
