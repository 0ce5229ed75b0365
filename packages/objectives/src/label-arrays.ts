import type { FloatDtype } from '@stillhouse/onnx-graph';
import { dequantiseHidden, type HiddenCodebook, type HiddenScale, type LabelledRow } from '@stillhouse/teacher-cache';
import { ABSENT_LOGPROB } from './label-distributions.ts';
import type { Objective } from './loss-graph.ts';

export type FloatArray = Float32Array | Float64Array;

/** The label positions of some rows as the arrays that `lossGraph` takes. N positions, rows in order, positions ascending. */
export interface LabelArrays {
  readonly count: number;
  /** [N]: index of the row among those given, and the position in it whose next token is predicted. */
  readonly rows: Int32Array;
  readonly positions: Int32Array;
  /** int64 [N]: the token to predict. */
  readonly labels: BigInt64Array;
  /** Inputs `teacher.*` of `lossGraph` by name, each with N as first dimension. */
  readonly teacher: ReadonlyMap<string, LabelArray>;
}

export interface LabelArray {
  readonly dtype: FloatDtype | 'int64';
  readonly data: FloatArray | BigInt64Array;
  /** Elements of one position: K, the teacher's width, or 1 with no dimension of its own. */
  readonly width: number | undefined;
}

export interface LabelOptions {
  readonly objective: Objective;
  readonly temperature: number;
  /** The cache's grid of temperatures; needed for `tail`. */
  readonly temperatures: readonly number[];
  /** What the final hidden states are decoded with, for int8 and coded. */
  readonly hiddenScale?: HiddenScale;
  /** Ids from here on are left out of the student's vocabulary: their mass goes to the tail. */
  readonly vocabSize: number;
  readonly float: FloatDtype;
}

interface Target {
  readonly row: number;
  readonly position: number;
  /** Index among the positions of the row that have labels stored. */
  readonly stored: number;
}

/** The positions of a row that count in the loss: those whose next token's mask is 1. */
export function countTargets(lossMask: Uint8Array): number {
  return lossMask.reduce((sum, one) => sum + one, 0);
}

function findTargets(labelled: readonly LabelledRow[]): readonly Target[] {
  return labelled.flatMap(({ row, positions }, index) =>
    [...positions].flatMap((position, stored) =>
      row.lossMask[position + 1] === 1 ? [{ row: index, position, stored }] : [],
    ),
  );
}

/** Gathers what the objective reads at every target position of `labelled`. */
export function collectLabels(labelled: readonly LabelledRow[], options: LabelOptions): LabelArrays {
  const targets = findTargets(labelled);
  const teacher = new Map<string, LabelArray>();
  const { objective, float } = options;
  if (objective.labels.kind === 'topk') collectTopK(labelled, targets, options, objective.labels, teacher);
  const needsFinal = objective.labels.kind === 'full' || objective.hidden !== undefined;
  if (needsFinal) {
    const hidden = collectFinalHidden(labelled, targets, options);
    if (objective.labels.kind === 'full') teacher.set('teacher.hidden', { dtype: float, ...hidden });
    if (objective.hidden !== undefined) teacher.set('teacher.final', { dtype: float, ...hidden });
  }
  return {
    count: targets.length,
    rows: Int32Array.from(targets, ({ row }) => row),
    positions: Int32Array.from(targets, ({ position }) => position),
    labels: BigInt64Array.from(targets, ({ row, position }) => BigInt(labelled[row]!.row.inputIds[position + 1]!)),
    teacher,
  };
}

function floats(float: FloatDtype, length: number): FloatArray {
  return float === 'float64' ? new Float64Array(length) : new Float32Array(length);
}

function collectFinalHidden(
  labelled: readonly LabelledRow[],
  targets: readonly Target[],
  { hiddenScale, float }: LabelOptions,
) {
  const dequantised = labelled.map(({ row, hidden }) => {
    const labels = hidden?.get('final');
    if (labels === undefined) throw new Error(`row ${row.id} was read without its final hidden states`);
    const states = dequantiseHidden(labels, hiddenScale);
    return { width: labels.dtype === 'coded' ? (hiddenScale as HiddenCodebook).width : labels.width, states };
  });
  const width = dequantised[0]?.width ?? 1;
  const data = floats(float, targets.length * width);
  for (const [n, { row, stored }] of targets.entries()) {
    data.set(dequantised[row]!.states.subarray(stored * width, (stored + 1) * width), n * width);
  }
  return { data, width };
}

function collectTopK(
  labelled: readonly LabelledRow[],
  targets: readonly Target[],
  { temperature, temperatures, vocabSize, float }: LabelOptions,
  labels: Extract<Objective['labels'], { kind: 'topk' }>,
  teacher: Map<string, LabelArray>,
): void {
  const { k, tail } = labels;
  const ids = new BigInt64Array(targets.length * k);
  const logprobs = floats(float, targets.length * k).fill(ABSENT_LOGPROB);
  const tails = floats(float, targets.length);
  const gridIndex = temperatures.indexOf(temperature);
  const offsets = labelled.map(({ row, topk }) => {
    if (topk === undefined) throw new Error(`row ${row.id} was read without its top-k labels`);
    const starts = new Int32Array(topk.counts.length + 1);
    topk.counts.forEach((count, i) => {
      starts[i + 1] = starts[i]! + count;
    });
    return starts;
  });
  targets.forEach(({ row, stored }, n) => {
    const topk = labelled[row]!.topk!;
    const start = offsets[row]![stored]!;
    const count = topk.counts[stored]!;
    const logZ = tail === 'tail' ? topk.logZ[stored * temperatures.length + gridIndex]! : 0;
    const divisor = tail === 'tail' ? temperature : 1;
    let mass = 0;
    for (let i = 0; i < k; i++) {
      const id = i < count ? topk.ids[start + i]! : vocabSize;
      const isPresent = id < vocabSize;
      // An absent entry repeats an id of the row: ids stay distinct in effect, and its probability is zero.
      ids[n * k + i] = BigInt(isPresent ? id : topk.ids[start]!);
      if (!isPresent) continue;
      const logprob = topk.logprobs[start + i]! / divisor - logZ;
      logprobs[n * k + i] = logprob;
      mass += Math.exp(logprob);
    }
    tails[n] = mass < 1 ? Math.log1p(-mass) : ABSENT_LOGPROB;
  });
  teacher.set('teacher.topk_ids', { dtype: 'int64', data: ids, width: k });
  teacher.set('teacher.topk_logprobs', { dtype: float, data: logprobs, width: k });
  if (!labels.isWhole && !tail.startsWith('renormalise'))
    teacher.set('teacher.tail_logprob', { dtype: float, data: tails, width: undefined });
}

/** Positions `from` to `to` of label arrays, sharing memory. */
export function sliceLabel(
  { data, width, dtype }: LabelArray,
  from: number,
  to: number,
): { readonly data: LabelArray['data']; readonly shape: readonly number[]; readonly dtype: LabelArray['dtype'] } {
  const each = width ?? 1;
  const shape = width === undefined ? [to - from] : [to - from, width];
  return { data: data.subarray(from * each, to * each), shape, dtype };
}
