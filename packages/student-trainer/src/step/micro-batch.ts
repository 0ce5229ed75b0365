import { ATTENTION_OUTPUT, ATTENTION_SEED, embeddingGradientCalls } from '@stillhouse/decoder';
import {
  type BatchTensors,
  embeddingCall,
  freeBatch,
  packSequences,
  type TokenBatch,
  uploadBatch,
} from '@stillhouse/model-runner';
import { type FeatureMatch, type LabelArrays, sliceLabel } from '@stillhouse/objectives';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { Call, DeviceTensor, Engine, Program } from '@stillhouse/runtime';
import type { HiddenLayer } from '@stillhouse/teacher-cache';
import { type LabelPositions, openLabelPositions } from '../data/label-positions.ts';
import { takesGradient } from '../plan/backward-plan.ts';
import type { TrainingPlan } from '../plan/training-plan.ts';
import { type PairedStates, statesOf } from '../settings/layer-pairs.ts';
import { createActivationStore } from './activation-store.ts';
import { type FeatureLosses, openFeatureLosses } from './feature-losses.ts';
import type { FloatData, ParameterStore } from './parameters.ts';
import { openRowTiles, type RowTiles } from './row-tiles.ts';
import type { LayerPrograms, StepPrograms } from './step-programs.ts';

/** Σ over label positions of weight · value: the loss that is differentiated, KL (without T²) and CE, in nats, features. */
export interface LossSums {
  readonly loss: number;
  readonly kl: number;
  readonly ce: number;
  /** The distance of each of the objective's features, in their order; empty stands for zeros. */
  readonly features: readonly number[];
}

export const ZERO_SUMS: LossSums = { loss: 0, kl: 0, ce: 0, features: [] };

export function addSums(a: LossSums, b: LossSums): LossSums {
  const [more, less] = a.features.length >= b.features.length ? [a, b] : [b, a];
  return {
    loss: a.loss + b.loss,
    kl: a.kl + b.kl,
    ce: a.ce + b.ce,
    features: more.features.map((one, i) => one + (less.features[i] ?? 0)),
  };
}

/** Rows of ids with the labels of their target positions; `labels.rows` counts these sequences. */
export interface MicroBatch {
  readonly sequences: readonly Int32Array[];
  /** How they are laid out; left out: `packSequences`. */
  readonly batch?: TokenBatch;
  readonly labels: LabelArrays;
}

export interface LossScalars {
  readonly temperature: number;
  readonly alpha: number;
  /** Of the mean distance over the objective's features that are hidden states, and over those that are attention outputs. */
  readonly hiddenWeight: number;
  /** Default 0. */
  readonly attentionWeight?: number;
}

/** What runs a micro-batch, on the device for the whole run. */
export interface StepSetting {
  readonly programs: StepPrograms;
  readonly store: ParameterStore;
  readonly float: FloatDtype;
  readonly scalars: LossScalars;
  /** The teacher's output matrix [vocabSize, teacher width], for `full` labels. */
  readonly teacherHead?: DeviceTensor;
}

export interface MicroBatchRunner {
  /**
   * Forward, loss and backward of one micro-batch; gradients are added to the parameters' accumulators.
   * @param denominator sum of the weights of the global batch's target positions that count: every micro-batch divides
   *   by the same number
   */
  accumulate(batch: MicroBatch, denominator: number): Promise<LossSums>;
  /** Values from the next micro-batch on. */
  setScalars(scalars: Partial<LossScalars>): void;
}

const LOSS_TERMS = 3;

/**
 * Runs micro-batches of one student under one objective.
 *
 * The loop over layers is the training step's own. It goes down as well as up: each layer's activations are kept for its gradient
 * or computed again, gradients take the layers in reverse, and feature losses read states, and add to gradients, between two layers.
 * A pass that is run for its outputs has none of this, and would carry all of it.
 */
export function createMicroBatchRunner(engine: Engine, plan: TrainingPlan, setting: StepSetting): MicroBatchRunner {
  const { programs, store, float } = setting;
  const { config, objective, vocabSize, backward: route, chunkPositions, selectTokens, tileTokens } = plan;
  const { forward } = programs;
  const scalar = (value: number) => {
    const tensor = engine.allocate(float, []);
    engine.fill(tensor, value);
    return tensor;
  };
  const scalars = {
    temperature: scalar(1),
    alpha: scalar(1),
    hiddenWeight: scalar(0),
    attentionWeight: scalar(0),
  };
  const shares = { hidden: scalars.hiddenWeight, attention: scalars.attentionWeight };
  const countOf = (states: PairedStates) => programs.features.filter(({ match }) => statesOf(match) === states).length;
  const setScalars = ({ temperature, alpha, hiddenWeight, attentionWeight }: Partial<LossScalars>) => {
    if (temperature !== undefined) engine.fill(scalars.temperature, temperature);
    if (alpha !== undefined) engine.fill(scalars.alpha, alpha);
    if (hiddenWeight !== undefined) engine.fill(shares.hidden, hiddenWeight / Math.max(1, countOf('hidden')));
    if (attentionWeight !== undefined)
      engine.fill(shares.attention, attentionWeight / Math.max(1, countOf('attention')));
  };
  setScalars(setting.scalars);
  const cut = (tensor: DeviceTensor) => engine.view(tensor, { offset: 0, shape: [vocabSize, config.hiddenSize] });
  const { norm } = store;
  const head = cut(store.outputMatrix.weight);
  const accumulators = Object.entries({
    norm: norm.gradient,
    head: store.outputMatrix.gradient && cut(store.outputMatrix.gradient),
  }).filter((entry): entry is [string, DeviceTensor] => entry[1] !== undefined);
  const fixedInputs: Record<string, DeviceTensor> = {
    norm: norm.weight,
    head,
    ...Object.fromEntries(accumulators.map(([name, gradient]) => [`gradient.${name}`, gradient])),
    ...(objective.labels.kind === 'none' ? {} : { temperature: scalars.temperature, alpha: scalars.alpha }),
    ...(setting.teacherHead === undefined ? {} : { 'teacher.head': setting.teacherHead }),
  };
  const fixedOutputs = Object.fromEntries(accumulators.map(([name, gradient]) => [`gradient.${name}.sum`, gradient]));
  /** Whether anything before the final norm learns. */
  const goesBack = takesGradient(route, route.runLayers);
  const matched = new Set(programs.features.map(({ match }) => match.student));

  /** Everything the batch needs on the device for as long as it runs. */
  const open: DeviceTensor[] = [];
  const hold = (tensor: DeviceTensor) => {
    open.push(tensor);
    return tensor;
  };

  const featureContext = {
    features: programs.features,
    gatherRows: forward.gatherRows,
    scatterRows: programs.scatterRows,
    store,
    hiddenSize: config.hiddenSize,
    float,
    weightOf: (match: FeatureMatch) => shares[statesOf(match)],
  };
  const positionsContext = {
    gatherRows: forward.gatherRows,
    selection: programs.selection,
    norm: norm.weight,
    head,
    hiddenSize: config.hiddenSize,
    float,
    chunkPositions,
    selectTokens,
    hold,
  };

  function lossCalls(
    { labels, chunks, weights }: LabelPositions,
    dx: DeviceTensor | undefined,
    sums: DeviceTensor,
  ): readonly Call[] {
    const calls: Call[] = [];
    for (const [chunk, { from, to, indexColumn, rows }] of chunks.entries()) {
      const size = to - from;
      const dRows = dx === undefined ? undefined : hold(engine.allocate(float, [size, config.hiddenSize]));
      const teacher = [...labels.teacher].map(([name, array]) => {
        const part = sliceLabel(array, from, to);
        return [name, hold(engine.upload(part.data as FloatData, part.dtype, part.shape))] as const;
      });
      calls.push({
        kind: 'run',
        program: programs.loss,
        inputs: {
          x: rows,
          labels: hold(engine.upload(labels.labels.slice(from, to), 'int64', [size, 1])),
          weights: engine.view(weights, { offset: from, shape: [size] }),
          ...fixedInputs,
          ...Object.fromEntries(teacher),
        },
        outputs: {
          ...(dRows === undefined ? {} : { dx: dRows }),
          sums: engine.view(sums, { offset: chunk * LOSS_TERMS, shape: [LOSS_TERMS] }),
          ...fixedOutputs,
        },
      });
      if (dx === undefined || dRows === undefined) continue;
      const inputs = { x: dx, indices: indexColumn, rows: dRows };
      calls.push({ kind: 'run', program: programs.scatterRows, inputs, outputs: { 'x.sum': dx } });
    }
    return calls;
  }

  const activations = createActivationStore(engine, float);

  /** @param back two buffers for the gradient of the residual stream in turns; the first comes with that of the loss */
  function backwardCalls(
    batch: TokenBatch,
    tensors: BatchTensors,
    layers: readonly LayerPrograms[],
    tiles: RowTiles,
    states: readonly DeviceTensor[],
    saved: readonly Readonly<Record<string, DeviceTensor>>[],
    outputs: readonly (DeviceTensor | undefined)[],
    features: FeatureLosses | undefined,
    back: readonly [DeviceTensor, DeviceTensor] | undefined,
  ): readonly Call[] {
    const { tables, shared } = tensors;
    const last = route.runLayers;
    let [upstream, downstream] = back ?? [];
    // A layer's states are held to the teacher's where the gradient passes them.
    const featureCalls = (layer: HiddenLayer, x: DeviceTensor): readonly Call[] =>
      features?.calls(layer, { x, dx: upstream }) ?? [];
    const dAttention = layers.some(({ exposesAttention }) => exposesAttention)
      ? hold(engine.allocate(float, [tensors.tokens, config.hiddenSize]))
      : undefined;
    const attentionCalls = (layer: number): readonly Call[] => {
      const x = outputs[layer];
      if (x === undefined) return [];
      const calls = features!.calls(`attention.${layer + 1}`, { x, dx: dAttention });
      return [{ kind: 'fill', tensor: dAttention!, value: 0 }, ...calls];
    };
    const calls: Call[] = [...featureCalls('final', states[last]!), ...featureCalls(last, states[last]!)];
    for (let layer = last - 1; layer >= 0; layer--) {
      calls.push(...attentionCalls(layer));
      if (layer < route.lowestLayer) {
        calls.push(...featureCalls(layer, states[layer]!));
        continue;
      }
      const { inputs, outputs } = store.layerGradients[layer]!;
      const { gradient, hasInputGradient, exposesAttention } = layers[layer]!;
      for (let tile = 0; tile < tiles.count; tile++) {
        const given = {
          ...{ x: states[layer]!, dy: upstream!, ...tables },
          ...(exposesAttention ? { [ATTENTION_SEED]: dAttention! } : {}),
          ...saved[layer]!,
        };
        calls.push({
          kind: 'run',
          program: gradient!,
          inputs: pick(gradient!, { ...tiles.cut(given, tile), ...shared, ...store.layerWeights[layer]!, ...inputs }),
          outputs: { ...(hasInputGradient ? tiles.cut({ dx: downstream! }, tile) : {}), ...outputs },
        });
      }
      [upstream, downstream] = [downstream, upstream];
      calls.push(...featureCalls(layer, states[layer]!));
    }
    const table = store.embedding.gradient;
    if (table === undefined) return calls;
    const program = programs.embeddingGradient;
    calls.push(...embeddingGradientCalls(engine, { program, ids: batch.ids, dx: upstream!, table, hold }));
    return calls;
  }

  return {
    setScalars,
    async accumulate({ sequences, batch = packSequences(sequences), labels }, denominator) {
      if (labels.count === 0) return ZERO_SUMS;
      const layers = await programs.layers.take(batch.queryBlocks);
      const tensors = uploadBatch(engine, forward, batch);
      const tiles = openRowTiles(engine, batch.rows, batch.length, tileTokens);
      try {
        const state = () => hold(engine.allocate(float, [tensors.tokens, config.hiddenSize]));
        // Below the lowest layer that is run backwards no state is needed again: two buffers in turns.
        const inTurns = route.lowestLayer === 0 ? [] : [state(), state()];
        const states = Array.from({ length: route.runLayers + 1 }, (_, layer) =>
          layer < route.lowestLayer && !matched.has(layer) ? inTurns[layer % 2]! : state(),
        );
        const saved = layers.map((layer, n) => activations.take(n, layer.saved, batch));
        const attentionOutputs = layers.map(({ exposesAttention }) => (exposesAttention ? state() : undefined));
        const back = goesBack ? ([state(), state()] as const) : undefined;
        const chunks = Math.ceil(labels.count / chunkPositions);
        const sums = hold(engine.allocate(float, [chunks, LOSS_TERMS]));
        const x = states[route.runLayers]!;
        const positions = openLabelPositions(engine, positionsContext, { batch, labels, denominator, x });
        const features =
          programs.features.length === 0
            ? undefined
            : openFeatureLosses(engine, featureContext, { ...positions, hold });
        await engine.run([
          ...tensors.biasCalls,
          embeddingCall(forward, tensors, store.embedding.weight, states[0]!),
          ...store.layerWeights.slice(0, route.runLayers).flatMap((weights, layer) =>
            Array.from({ length: tiles.count }, (_, tile): Call => {
              const { tables, shared } = tensors;
              const inputs = { ...tiles.cut({ x: states[layer]!, ...tables }, tile), ...shared, ...weights };
              const attention = attentionOutputs[layer];
              const exposed = attention === undefined ? {} : { [ATTENTION_OUTPUT]: attention };
              const outputs = tiles.cut({ y: states[layer + 1]!, ...saved[layer]!, ...exposed }, tile);
              return { kind: 'run', program: layers[layer]!.block, inputs, outputs };
            }),
          ),
          ...positions.calls,
          ...(objective.isFeaturesOnly === true ? [] : lossCalls(positions, back?.[0], sums)),
          ...backwardCalls(batch, tensors, layers, tiles, states, saved, attentionOutputs, features, back),
        ]);
        const { loss, ...others } = readSums((await engine.download(sums)) as FloatData);
        const distances = await features?.readSums();
        return { ...others, loss: loss + (distances?.loss ?? 0), features: distances?.distances ?? [] };
      } finally {
        tiles.close();
        freeBatch(engine, tensors);
        activations.release();
        for (const tensor of open.splice(0)) engine.free(tensor);
      }
    },
  };
}

function readSums(values: FloatData): Omit<LossSums, 'features'> {
  const sums = [0, 0, 0];
  values.forEach((value: number, i: number) => {
    sums[i % LOSS_TERMS]! += value;
  });
  const [loss, kl, ce] = sums;
  return { loss: loss!, kl: kl!, ce: ce! };
}

/** The tensors that a program has inputs for: with saved activations a gradient needs less. */
function pick(
  program: Program,
  tensors: Readonly<Record<string, DeviceTensor>>,
): Readonly<Record<string, DeviceTensor>> {
  return Object.fromEntries(program.inputNames.map((name) => [name, tensors[name]!]));
}
