import type { ModelConfig } from '@stillhouse/checkpoint';
import type { PerQueryBlocks } from '@stillhouse/decoder';
import {
  compileForwardPrograms,
  exposingBlocks,
  type ForwardPrograms,
  openStreamedPass,
  packSequences,
  type StreamedPass,
  type StreamedWeights,
  type TokenBatch,
} from '@stillhouse/model-runner';
import type { DeviceTensor, Engine, Program } from '@stillhouse/runtime';
import {
  attentionLayer,
  type CacheDescription,
  type CachedRow,
  type CacheWriter,
  type HiddenLabels,
  type HiddenLayer,
  type HiddenScale,
  type LabelledRow,
  labelPositions,
  targetsOf,
} from '@stillhouse/teacher-cache';
import { measureLayerRms } from '../calibrate/channel-rms.ts';
import { measureCodebook } from '../calibrate/hidden-calibration.ts';
import type { DistributionLabels } from './distribution-readout.ts';
import type { LabelRange } from './label-range.ts';
import { createLabelReadout, type LabelReadout } from './label-readout.ts';
import { measureWork } from './scoring-work.ts';

export interface ScoringOptions {
  readonly labels: CacheDescription['labels'];
  readonly positions: CacheDescription['positions'];
  /** Tokens that go through a layer together; bounds the working memory, and changes labels by rounding only. */
  readonly batchTokens: number;
  /** How a batch is laid out; `packSequences` if not given. */
  readonly layOut?: (sequences: readonly Int32Array[]) => TokenBatch;
}

/** What the layers of a cache are decoded with: what is fixed, and fixing it. */
export type LayerScales = Pick<CacheWriter, 'scale' | 'setScale'>;

export interface ScoringStep {
  /** What was computed: a layer, from 1, or the labels of the final states. */
  readonly stage: number | 'readout';
  /** Multiply-adds of weights, see `measureWork`. */
  readonly work: number;
}

/** Scores rows with one teacher. */
export interface RowScorer {
  /**
   * The labels of rows, in their order. All of them go through one layer before the next one is read, so that memory
   * holds a layer's weights and the residual streams of these rows, however large the teacher is.
   * @throws StillhouseError TEACHER_OUTPUT_NOT_FINITE, HIDDEN_STATE_OUT_OF_RANGE, naming the row
   */
  score(
    rows: readonly CachedRow[],
    scales: LayerScales,
    onStep?: (step: ScoringStep) => void,
  ): Promise<readonly LabelledRow[]>;
}

interface Scoring {
  readonly engine: Engine;
  readonly config: ModelConfig;
  readonly weights: StreamedWeights;
  readonly options: ScoringOptions;
  readonly programs: ForwardPrograms;
  /** A layer with its attention output, where that of some layer is wanted. */
  readonly exposing: PerQueryBlocks<Program> | undefined;
  readonly readout: LabelReadout;
}

/** Compiles what scoring needs: a handful of programs, whatever the depth. */
export async function createRowScorer(
  engine: Engine,
  config: ModelConfig,
  weights: StreamedWeights,
  options: ScoringOptions,
): Promise<RowScorer> {
  const programs = await compileForwardPrograms(engine, config, 'float32');
  const readout = await createLabelReadout(engine, config, options.labels);
  const hasAttention = options.labels.hidden?.layers.some((layer) => attentionLayer(layer) !== undefined) === true;
  const exposing = hasAttention ? exposingBlocks(engine, programs) : undefined;
  const scoring: Scoring = { engine, config, weights, options, programs, exposing, readout };
  return { score: (rows, scales, onStep = () => {}) => scoreRows(scoring, rows, scales, onStep) };
}

/** Labels of the rows of a pass, by row. */
interface PassLabels {
  readonly distributions: readonly DistributionLabels[] | undefined;
  readonly hidden: ReadonlyMap<HiddenLayer, readonly HiddenLabels[]>;
}

async function scoreRows(
  scoring: Scoring,
  rows: readonly CachedRow[],
  scales: LayerScales,
  onStep: (step: ScoringStep) => void,
): Promise<readonly LabelledRow[]> {
  const { engine, programs, exposing, weights, options } = scoring;
  const { batchTokens, layOut = packSequences } = options;
  const positions = rows.map(({ lossMask }) => labelPositions(lossMask, options.positions));
  const passRows = rows.map(({ inputIds }, i) => ({ inputIds, positions: positions[i]! }));
  const pass = await openStreamedPass(passRows, { engine, programs, weights, batchTokens, layOut, exposing });
  const ranges = rows.map(
    (row, i): LabelRange => ({
      ...pass.ranges[i]!,
      rowId: row.id,
      positions: positions[i]!,
      targets: targetsOf(row, positions[i]!),
    }),
  );
  let labels: PassLabels;
  try {
    labels = await runPass(scoring, { pass, ranges }, scales, onStep);
  } finally {
    pass.close();
  }
  return rows.map((row, i) => ({
    row,
    positions: positions[i]!,
    ...labels.distributions?.[i],
    ...(labels.hidden.size === 0
      ? {}
      : { hidden: new Map([...labels.hidden].map(([layer, states]) => [layer, states[i]!])) }),
  }));
}

/** A pass over rows, and where their labels are in it. */
interface RowPass {
  readonly pass: StreamedPass;
  readonly ranges: readonly LabelRange[];
}

async function runPass(
  scoring: Scoring,
  { pass, ranges }: RowPass,
  scales: LayerScales,
  onStep: (step: ScoringStep) => void,
): Promise<PassLabels> {
  const { engine, config, weights, options, readout } = scoring;
  const { hidden } = options.labels;
  const { readDistributions } = readout;
  const wanted = new Set<HiddenLayer>(hidden?.layers ?? []);
  const needsEnd = readDistributions !== undefined || wanted.has('final');
  const depth = needsEnd
    ? config.layerCount
    : Math.max(0, ...[...wanted].map((layer) => attentionLayer(layer) ?? Number(layer)));
  const work = measureWork(config);
  const states = new Map<HiddenLayer, readonly HiddenLabels[]>();
  const readHidden = async (layer: HiddenLayer, labelStates: DeviceTensor) => {
    if (!wanted.has(layer)) return;
    const scale = await fixScale(scoring, scales, layer, labelStates);
    states.set(layer, await readout.readHidden(layer, labelStates, scale, ranges));
  };

  if (wanted.has(0)) await readHidden(0, await pass.gatherStates());
  // Without label positions there is nothing to compute, but scales and empty labels are wanted all the same.
  for (let layer = 1; layer <= depth; layer++) {
    const attention: HiddenLayer = `attention.${layer}`;
    const attentionStates = await pass.runLayer(layer - 1, {
      onBatch: (tokens) => onStep({ stage: layer, work: tokens * work.layer }),
      prefetch: () => {
        if (layer < depth) weights.prefetchLayer(layer);
        else if (readDistributions !== undefined) weights.prefetchOutputMatrix();
      },
      exposesAttention: wanted.has(attention),
    });
    if (wanted.has(attention)) await readHidden(attention, attentionStates ?? (await pass.gatherStates()));
    if (attentionStates !== undefined) engine.free(attentionStates);
    if (wanted.has(layer)) await readHidden(layer, await pass.gatherStates());
  }
  if (!needsEnd) return { distributions: undefined, hidden: states };

  const final = await pass.finishStates();
  try {
    await readHidden('final', final);
    if (readDistributions === undefined) return { distributions: undefined, hidden: states };
    const head = await weights.takeOutputMatrix();
    const distributions = await readDistributions(final, head, ranges, (count) =>
      onStep({ stage: 'readout', work: count * work.readout }),
    );
    weights.dropOutputMatrix();
    return { distributions, hidden: states };
  } finally {
    engine.free(final);
  }
}

/** What the states of a layer are stored by: fixed by earlier shards, or now by these; undefined for floats. */
async function fixScale(
  scoring: Scoring,
  scales: LayerScales,
  layer: HiddenLayer,
  states: DeviceTensor,
): Promise<HiddenScale | undefined> {
  const known = scales.scale(layer);
  if (known !== undefined) return known;
  const measured = await measureScale(scoring, layer, states);
  if (measured === undefined) return undefined;
  await scales.setScale(layer, measured);
  // Another builder of the same cache may have been first; then its numbers hold.
  return scales.scale(layer) ?? measured;
}

async function measureScale(
  { engine, weights, options }: Scoring,
  layer: HiddenLayer,
  states: DeviceTensor,
): Promise<HiddenScale | undefined> {
  const { hidden, topk } = options.labels;
  if (hidden!.dtype === 'int8') return measureLayerRms(engine, states);
  if (hidden!.dtype !== 'coded') return undefined;
  const codedBytes = hidden!.codedBytes!;
  if (layer !== 'final') return measureCodebook(engine, states, { codedBytes });
  const readout = { head: await weights.takeOutputMatrix(), temperatures: topk?.temperatures ?? METRIC_TEMPERATURES };
  try {
    return await measureCodebook(engine, states, { codedBytes, readout });
  } finally {
    weights.dropOutputMatrix();
  }
}

/** Temperatures that coded final states are fitted to where the cache has no grid of its own. */
const METRIC_TEMPERATURES = [1, 2, 4];
