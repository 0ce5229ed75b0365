import type { FloatDtype } from '@stillhouse/onnx-graph';
import {
  dequantiseHidden,
  type HiddenLayer,
  type HiddenScale,
  isCodebook,
  type LabelledRow,
} from '@stillhouse/teacher-cache';
import type { Objective, Refinement } from '../losses/loss-graph.ts';
import {
  type FloatArray,
  type GatheredTopK,
  gatherSamples,
  gatherTopK,
  makeFloats,
  type Target,
} from './label-gathering.ts';

/**
 * The label positions of some rows as the arrays that `lossGraph` takes. N positions, rows in order, positions
 * ascending.
 */
export interface LabelArrays {
  readonly count: number;
  /** [N]: index of the row among those given, and the position in it whose next token is predicted. */
  readonly rows: Int32Array;
  readonly positions: Int32Array;
  /** int64 [N]: the token to predict. */
  readonly labels: BigInt64Array;
  /** [N]: what each position weighs in the loss beside the others; left out where all weigh 1. */
  readonly weights?: Float64Array;
  /** Inputs `teacher.*` of `lossGraph` by name, each with N as first dimension. */
  readonly teacher: ReadonlyMap<string, LabelArray>;
  /** States of the teacher [N, D] that the objective's features are held to, by layer. */
  readonly features?: ReadonlyMap<HiddenLayer, LabelArray>;
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
  /** The cache's grid of temperatures; needed for `tail` and for refined labels with a stored normaliser. */
  readonly temperatures: readonly number[];
  /** The temperature at which sampled labels were drawn; needed for those. */
  readonly sampledTemperature?: number;
  /** What the final hidden states are decoded with, for int8 and coded. */
  readonly hiddenScale?: HiddenScale;
  /** The same for the layers of features. */
  readonly featureScales?: ReadonlyMap<HiddenLayer, HiddenScale>;
  /** Ids from here on are left out of the student's vocabulary: their mass goes to the tail. */
  readonly vocabSize: number;
  readonly float: FloatDtype;
  /** Weights above 0 by the task of a row; a row of another task or of none weighs 1. */
  readonly taskWeights?: TaskWeights;
}

export type TaskWeights = ReadonlyMap<string, number>;

/** What every target position of a row weighs. */
export function weighRow({ task }: LabelledRow['row'], weights: TaskWeights | undefined): number {
  return task === undefined ? 1 : (weights?.get(task) ?? 1);
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
  const { objective, float } = options;
  const { labels } = objective;
  const teacher = new Map<string, LabelArray>();
  const add = (arrays: ReadonlyMap<string, LabelArray>) => {
    for (const [name, array] of arrays) teacher.set(name, array);
  };
  if (labels.kind === 'topk') add(collectTopK(labelled, targets, options, labels));
  if (labels.kind === 'sampled') add(collectSamples(labelled, targets, options));
  if (labels.kind === 'full' && labels.refinement !== undefined)
    add(collectRefinement(labelled, labels.refinement, options));
  if (labels.kind === 'full') {
    const states =
      labels.isCoded === true
        ? collectCodes(labelled, targets, float)
        : collectStates(labelled, targets, { layer: 'final', scale: options.hiddenScale, float });
    teacher.set('teacher.hidden', states);
  }
  return {
    count: targets.length,
    rows: Int32Array.from(targets, ({ row }) => row),
    positions: Int32Array.from(targets, ({ position }) => position),
    labels: BigInt64Array.from(targets, ({ row, position }) => BigInt(labelled[row]!.row.inputIds[position + 1]!)),
    teacher,
    ...(objective.features === undefined ? {} : { features: collectFeatures(labelled, targets, options) }),
    ...(options.taskWeights === undefined
      ? {}
      : { weights: Float64Array.from(targets, ({ row }) => weighRow(labelled[row]!.row, options.taskWeights)) }),
  };
}

/** The stored states of a layer in each row. */
function requireStates(labelled: readonly LabelledRow[], layer: HiddenLayer) {
  return labelled.map(({ row, hidden }) => {
    const labels = hidden?.get(layer);
    if (labels === undefined) throw new Error(`row ${row.id} was read without its hidden states of layer ${layer}`);
    return labels;
  });
}

/** The codes of coded final states and a 1 behind, [N, rank + 1]. */
function collectCodes(labelled: readonly LabelledRow[], targets: readonly Target[], float: FloatDtype): LabelArray {
  const states = requireStates(labelled, 'final');
  const rank = states[0]?.width ?? 0;
  const width = rank + 1;
  const data = makeFloats(float, targets.length * width);
  for (const [n, { row, stored }] of targets.entries()) {
    data.set(states[row]!.values.subarray(stored * rank, (stored + 1) * rank), n * width);
    data[n * width + rank] = 1;
  }
  return { dtype: float, data, width };
}

/** The states of a layer, [N, D]. */
function collectStates(
  labelled: readonly LabelledRow[],
  targets: readonly Target[],
  {
    layer,
    scale,
    float,
  }: { readonly layer: HiddenLayer; readonly scale: HiddenScale | undefined; readonly float: FloatDtype },
): LabelArray {
  const dequantised = requireStates(labelled, layer).map((labels) => ({
    width: scale !== undefined && isCodebook(scale) ? scale.width : labels.width,
    states: dequantiseHidden(labels, scale),
  }));
  const width = dequantised[0]?.width ?? 1;
  const data = makeFloats(float, targets.length * width);
  for (const [n, { row, stored }] of targets.entries()) {
    data.set(dequantised[row]!.states.subarray(stored * width, (stored + 1) * width), n * width);
  }
  return { dtype: float, data, width };
}

function collectFeatures(
  labelled: readonly LabelledRow[],
  targets: readonly Target[],
  { objective, featureScales, float }: LabelOptions,
): ReadonlyMap<HiddenLayer, LabelArray> {
  const layers = new Set(objective.features!.map(({ teacher }) => teacher));
  return new Map(
    [...layers].map((layer) => [
      layer,
      collectStates(labelled, targets, { layer, scale: featureScales?.get(layer), float }),
    ]),
  );
}

function collectTopK(
  labelled: readonly LabelledRow[],
  targets: readonly Target[],
  { temperature, temperatures, vocabSize, float }: LabelOptions,
  labels: Extract<Objective['labels'], { kind: 'topk' }>,
): ReadonlyMap<string, LabelArray> {
  const { k, tail, isWhole } = labels;
  const at = tail === 'tail' ? temperature : 1;
  const gathered = gatherTopK(labelled, targets, { k, temperature: at, temperatures, vocabSize, float });
  return topKArrays(gathered, k, float, !isWhole && !tail.startsWith('renormalise'));
}

/**
 * The least mass outside the entries that is told from none by 1 - Σp: log-probabilities that were computed in float32
 * from logits of some tens are off by some 1e-6.
 */
const LEAST_KNOWN_TAIL = 1e-5;

/** What refines full labels at every target position of `labelled`: ids, log-probabilities, tail. */
export function collectRefinement(
  labelled: readonly LabelledRow[],
  { k, normaliser }: Refinement,
  { temperature, temperatures, vocabSize, float }: Omit<LabelOptions, 'objective'>,
): ReadonlyMap<string, LabelArray> {
  const isStored = normaliser === 'stored';
  const gathered = gatherTopK(labelled, findTargets(labelled), {
    k,
    temperature: isStored ? temperature : 1,
    temperatures,
    vocabSize,
    float,
    leastTail: isStored ? 0 : LEAST_KNOWN_TAIL,
  });
  return topKArrays(gathered, k, float, true);
}

function topKArrays(
  { ids, logprobs, tails }: GatheredTopK,
  k: number,
  float: FloatDtype,
  hasTail: boolean,
): ReadonlyMap<string, LabelArray> {
  return new Map<string, LabelArray>([
    ['teacher.topk_ids', { dtype: 'int64', data: ids, width: k }],
    ['teacher.topk_logprobs', { dtype: float, data: logprobs, width: k }],
    ...(hasTail ? [['teacher.tail_logprob', { dtype: float, data: tails, width: undefined }] as const] : []),
  ]);
}

function collectSamples(
  labelled: readonly LabelledRow[],
  targets: readonly Target[],
  { temperature, sampledTemperature, vocabSize, float }: LabelOptions,
): ReadonlyMap<string, LabelArray> {
  if (sampledTemperature === undefined) throw new Error('sampled labels need the temperature of their draws');
  const options = { temperature, drawnAt: sampledTemperature, vocabSize, float };
  const { width, ids, logWeights } = gatherSamples(labelled, targets, options);
  return new Map<string, LabelArray>([
    ['teacher.sampled_ids', { dtype: 'int64', data: ids, width }],
    ['teacher.sampled_logweights', { dtype: float, data: logWeights, width }],
  ]);
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
