import { flatIndex, type TokenBatch } from '@stillhouse/model-runner';
import { countSelected, type LabelArrays } from '@stillhouse/objectives';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { Call, DeviceTensor, Engine, Program } from '@stillhouse/runtime';
import type { LabelChunk } from '../step/feature-losses.ts';
import type { StepPrograms } from '../step/step-programs.ts';

/** Label positions that are computed together, with their residual stream after the last layer. */
export interface StreamChunk extends LabelChunk {
  /** [to - from, H] */
  readonly rows: DeviceTensor;
}

/** The label positions of a micro-batch, and what each weighs over the denominator. */
export interface LabelPositions {
  readonly labels: LabelArrays;
  readonly chunks: readonly StreamChunk[];
  /** [count] */
  readonly weights: DeviceTensor;
  /** Finds rows and weights. */
  readonly calls: readonly Call[];
}

export interface LabelPositionsContext {
  readonly gatherRows: Program;
  readonly selection: StepPrograms['selection'];
  /** The final norm's weight and the output matrix: a position is chosen by the student's distribution. */
  readonly norm: DeviceTensor;
  readonly head: DeviceTensor;
  readonly hiddenSize: number;
  readonly float: FloatDtype;
  readonly chunkPositions: number;
  /** Share of each row's target positions that count, those of the student's highest entropy; 1 is all. */
  readonly selectTokens: number;
  /** Takes note of a tensor that is to be freed with the micro-batch. */
  readonly hold: (tensor: DeviceTensor) => DeviceTensor;
}

/** A batch with its labels, for a loss over `denominator`. */
export interface LabelledBatch {
  readonly batch: TokenBatch;
  readonly labels: LabelArrays;
  readonly denominator: number;
  /** [B·T, H]: the residual stream after the last layer. */
  readonly x: DeviceTensor;
}

/** Integers [N] as [N, 1]: a view, as no graph needs to reshape them then, which not every device can. */
const asColumn = (engine: Engine, tensor: DeviceTensor) =>
  engine.view(tensor, { offset: 0, shape: [tensor.shape[0]!, 1] });

const viewPart = (engine: Engine, tensor: DeviceTensor, from: number, to: number) =>
  engine.view(tensor, { offset: from, shape: [to - from] });

/** Cuts the label positions of a micro-batch into chunks, and says what each position weighs. */
export function openLabelPositions(
  engine: Engine,
  context: LabelPositionsContext,
  { batch, labels, denominator, x }: LabelledBatch,
): LabelPositions {
  const { gatherRows, selection, hiddenSize, float, chunkPositions, hold } = context;
  const flat = BigInt64Array.from(labels.positions, (position, n) =>
    BigInt(flatIndex(batch, batch.placements[labels.rows[n]!]!, position)),
  );
  const chunks: StreamChunk[] = [];
  for (let from = 0; from < labels.count; from += chunkPositions) {
    const to = Math.min(labels.count, from + chunkPositions);
    const indices = hold(engine.upload(flat.slice(from, to), 'int64', [to - from]));
    const indexColumn = asColumn(engine, indices);
    const rows = hold(engine.allocate(float, [to - from, hiddenSize]));
    chunks.push({ from, to, indices, indexColumn, rows });
  }
  const given = labels.weights ?? new Float64Array(labels.count).fill(1);
  const shares = given.map((weight) => weight / denominator);
  const weights = uploadFloats(engine, context, shares);
  const calls = chunks.map(({ indices, rows }): Call => {
    return { kind: 'run', program: gatherRows, inputs: { x, indices }, outputs: { rows } };
  });
  if (selection === undefined) return { labels, chunks, weights, calls };
  const selected = hold(engine.allocate(float, [labels.count]));
  calls.push(...selectionCalls(engine, context, { labels, chunks, weights }, selected));
  return { labels, chunks, weights: selected, calls };
}

const uploadFloats = (engine: Engine, { float, hold }: LabelPositionsContext, data: Float64Array) =>
  hold(engine.upload(float === 'float64' ? data : Float32Array.from(data), float, [data.length]));

/** Entropies of all chunks first, as a position is judged among all of its row. */
function selectionCalls(
  engine: Engine,
  context: LabelPositionsContext,
  { labels: { rows, count }, chunks, weights }: Omit<LabelPositions, 'calls'>,
  selected: DeviceTensor,
): readonly Call[] {
  const { norm, head, float, chunkPositions, selectTokens, hold } = context;
  const { entropy, select } = context.selection!;
  const entropies = hold(engine.allocate(float, [count]));
  const calls = chunks.map((chunk): Call => {
    const outputs = { entropy: viewPart(engine, entropies, chunk.from, chunk.to) };
    return { kind: 'run', program: entropy, inputs: { x: chunk.rows, norm, head }, outputs };
  });
  const order = uploadFloats(
    engine,
    context,
    Float64Array.from({ length: count }, (_, n) => n),
  );
  for (let start = 0, end = 0; start < count; start = end) {
    while (end < count && rows[end] === rows[start]) end += 1;
    const kept = hold(engine.allocate(float, []));
    engine.fill(kept, countSelected(end - start, selectTokens));
    const ofRow = (tensor: DeviceTensor) => viewPart(engine, tensor, start, end);
    const row = { 'row.entropy': ofRow(entropies), 'row.order': ofRow(order), kept };
    for (let from = start; from < end; from += chunkPositions) {
      const to = Math.min(end, from + chunkPositions);
      const part = (tensor: DeviceTensor) => viewPart(engine, tensor, from, to);
      const own = { entropy: part(entropies), order: part(order), weights: part(weights) };
      calls.push({ kind: 'run', program: select, inputs: { ...own, ...row }, outputs: { selected: part(selected) } });
    }
  }
  return calls;
}
