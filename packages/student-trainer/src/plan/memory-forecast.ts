import { batchSymbols, blockGradientGraph, blockGraph, cutIntoBlocks, savingBlockGraphs } from '@stillhouse/decoder';
import { lossGraph } from '@stillhouse/objectives';
import { measureWorkingMemory } from '@stillhouse/onnx-graph';
import { countElements } from '@stillhouse/tensor-types';
import { measureMoments } from '../optimiser/optimiser-state.ts';
import { measureActivations } from '../step/activation-store.ts';
import { tileBoundaries } from '../step/row-tiles.ts';
import { gradientOptions, type LayerBackward, layerKey } from './backward-plan.ts';
import type { TrainingPlan } from './training-plan.ts';

/** The largest micro-batch of a run. */
export interface BatchShape {
  readonly rows: number;
  readonly length: number;
  /** Tokens of the step that it belongs to. */
  readonly stepTokens: number;
}

/**
 * Micro-batches of one number of query blocks: the longest rows, and as many of them as hold the most tokens of any.
 */
export interface BatchLayout {
  readonly rows: number;
  readonly length: number;
  readonly queryBlocks: number;
}

export function gatherLayouts(batches: readonly BatchLayout[]): readonly BatchLayout[] {
  const most = new Map<number, { length: number; tokens: number }>();
  for (const { rows, length, queryBlocks } of batches) {
    const { length: longest, tokens } = most.get(queryBlocks) ?? { length: 0, tokens: 0 };
    most.set(queryBlocks, { length: Math.max(longest, length), tokens: Math.max(tokens, rows * length) });
  }
  return [...most].map(([queryBlocks, { length, tokens }]) => ({
    queryBlocks,
    length,
    rows: Math.ceil(tokens / length),
  }));
}

/** What the memory of a training run depends on. */
export interface MemoryQuestion {
  readonly plan: TrainingPlan;
  readonly batch: BatchShape;
  /** The micro-batches of each number of query blocks that the run has; the largest is one of them. */
  readonly layouts: readonly BatchLayout[];
  /** What readers of the caches come to keep of them, in bytes. */
  readonly keptCacheBytes: number;
  /** Steps that are read ahead. */
  readonly prefetchSteps: number;
  readonly evaluates: boolean;
}

export interface MemoryItem {
  readonly what: string;
  readonly sizeBytes: number;
}

/** Where the memory of a run goes when it holds most, in bytes of resident memory. */
export interface MemoryForecast {
  readonly items: readonly MemoryItem[];
  readonly peakBytes: number;
}

/** Node.js, our code and ONNX Runtime, before there is a student (docs/log.md). */
const BASE_BYTES = 240e6;

/** What programs came to hold, against what their values take of the arena (docs/log.md). */
const WORK_SHARE = 1.07;

/**
 * Steps whose labels are in memory beside those that are read ahead: the one that is computed, here and on the device.
 */
const STEPS_COMPUTED = 2;

const sum = (numbers: readonly number[]) => numbers.reduce((total, one) => total + one, 0);

/**
 * The peak of a run on the CPU, from the sizes of all that it allocates and from the intermediate values of its
 * programs. What depends on the labels themselves (how many positions are targets) is taken at its most.
 */
export function forecastMemory(question: MemoryQuestion): MemoryForecast {
  const { plan, batch } = question;
  const { config, objective, vocabSize, tensors: specs, optimiserState } = plan;
  const learned = specs.filter(({ learns }) => learns);
  const tokens = batch.rows * batch.length;
  const { labels } = objective;
  const teacherWidth = labels.kind === 'full' ? labels.teacherHidden : 0;
  const teacherHeadBytes = 4 * vocabSize * teacherWidth;
  const chunk = Math.min(plan.chunkPositions, tokens);
  const largest = 4 * Math.max(...specs.map(({ shape }) => countElements(shape)));
  const streams = measureStreams(question);
  const labelBytes = 4 * tokens * (2 * config.hiddenSize + teacherWidth);
  // Checkpoints and the student are written tensor by tensor, when the micro-batch is gone.
  const passing = [
    { what: 'residual streams and labels of a micro-batch', sizeBytes: streams + labelBytes },
    { what: 'the largest tensor, being written', sizeBytes: largest },
    ...(question.evaluates
      ? [
          {
            what: 'evaluation',
            sizeBytes: teacherHeadBytes + 4 * 4 * chunk * vocabSize + 8 * tokens * config.hiddenSize,
          },
        ]
      : []),
  ].reduce((most, one) => (one.sizeBytes > most.sizeBytes ? one : most));
  const items: MemoryItem[] = [
    { what: 'program and ONNX Runtime', sizeBytes: BASE_BYTES },
    { what: 'weights', sizeBytes: 4 * sum(specs.map(({ shape }) => countElements(shape))) },
    { what: 'gradients', sizeBytes: 4 * sum(learned.map(({ shape }) => countElements(shape))) },
    {
      what: "AdamW's moments",
      sizeBytes: sum(learned.map(({ shape }) => measureMoments(optimiserState, countElements(shape)))),
    },
    { what: "the teacher's output matrix", sizeBytes: teacherHeadBytes },
    { what: 'activations that are kept', sizeBytes: measureKept(question) },
    { what: 'working memory of the layers', sizeBytes: measureLayerWork(question) },
    { what: 'working memory of the loss', sizeBytes: measureLossWork(question, chunk) },
    { what: 'rows of the caches that are kept', sizeBytes: question.keptCacheBytes },
    { what: 'labels of the steps that are read ahead', sizeBytes: measureLoader(question) },
    passing,
  ]
    .filter(({ sizeBytes }) => sizeBytes > 0)
    .map(({ what, sizeBytes }) => ({ what, sizeBytes: Math.ceil(sizeBytes) }));
  return { items, peakBytes: sum(items.map(({ sizeBytes }) => sizeBytes)) };
}

function measureKept({ plan, batch }: MemoryQuestion): number {
  const { config, recompute, backward } = plan;
  return recompute ? 0 : measureActivations(config, backward, batch.rows, batch.length);
}

/** Residual streams, their gradients and the tables of a batch. */
function measureStreams({ plan: { config, backward, lossGradients }, batch }: MemoryQuestion): number {
  const { rows, length } = batch;
  const kept = config.layerCount + 1 - backward.lowestLayer + (backward.lowestLayer === 0 ? 0 : 2);
  const back = lossGradients.x ? 2 : 0;
  // Where queries attend in blocks, the bias of each is made in the layer's program.
  const bias = cutIntoBlocks(length).queryBlocks === 1 ? rows * length * length : 0;
  const tables = rows * length * config.headDim + bias;
  return 4 * ((kept + back) * rows * length * config.hiddenSize + tables);
}

/**
 * Every program keeps the working memory of its largest run: one for each kind of layer, forwards and backwards, and
 * for each number of query blocks.
 */
const measureLayerWork = (question: MemoryQuestion) =>
  sum(question.layouts.map((layout) => measureWorkAt(question.plan, layout)));

function measureWorkAt(plan: TrainingPlan, { rows, length, queryBlocks }: BatchLayout): number {
  const { config, recompute, backward, tileTokens } = plan;
  const boundaries = tileBoundaries(rows, length, tileTokens);
  const tileRows = Math.max(...boundaries.slice(1).map((end, i) => end - boundaries[i]!));
  const sizes = batchSymbols(tileRows, length, queryBlocks);
  const measured = new Map<string, number>();
  for (const layer of backward.layers) {
    const key = layer === undefined ? '' : layerKey(layer);
    if (measured.has(key)) continue;
    const bare = () => measureWorkingMemory(blockGraph(config, 'float32', { queryBlocks, ...adapterOf(layer) }), sizes);
    if (layer === undefined) measured.set(key, bare());
    else if (recompute) {
      const gradient = blockGradientGraph(config, 'float32', gradientOptions(layer, queryBlocks));
      measured.set(key, bare() + measureWorkingMemory(gradient, sizes));
    } else {
      const { forward, gradient } = savingBlockGraphs(config, 'float32', gradientOptions(layer, queryBlocks));
      measured.set(key, measureWorkingMemory(forward, sizes) + measureWorkingMemory(gradient, sizes));
    }
  }
  return WORK_SHARE * sum([...measured.values()]);
}

const adapterOf = (layer: LayerBackward | undefined) =>
  layer?.adapter === undefined ? {} : { adapter: layer.adapter };

function measureLossWork({ plan }: MemoryQuestion, chunk: number): number {
  const { objective, vocabSize } = plan;
  const { hiddenSize, rmsNormEpsilon } = plan.config;
  const { norm, head } = plan.lossGradients;
  const graph = lossGraph(objective, { hiddenSize, vocabSize, rmsNormEpsilon }, 'float32', {
    norm,
    head,
  });
  // Sampled labels have as many entries as come; few, as the point of sampling is.
  return WORK_SHARE * measureWorkingMemory(graph, { N: chunk, K: 64 });
}

function measureLoader({ plan, batch, prefetchSteps }: MemoryQuestion): number {
  const { labels, features = [] } = plan.objective;
  const widths = [
    labels.kind === 'full' ? labels.teacherHidden : 0,
    labels.kind === 'topk' ? 3 * labels.k : 0,
    labels.kind === 'full' && labels.refinement !== undefined ? 3 * labels.refinement.k : 0,
    ...features.map(({ teacherHidden }) => teacherHidden),
  ];
  return 4 * batch.stepTokens * (prefetchSteps + STEPS_COMPUTED) * sum(widths);
}
