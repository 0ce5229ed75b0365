import {
  type BatchTensors,
  embeddingCall,
  flatIndex,
  freeBatch,
  packSequences,
  type TokenBatch,
  tablesCall,
  uploadBatch,
} from '@stillhouse/decoder';
import { countSelected, type LabelArrays, type Objective, sliceLabel } from '@stillhouse/objectives';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { Call, DeviceTensor, Engine, Program } from '@stillhouse/runtime';
import { createActivationStore } from './activation-store.ts';
import { type FloatData, type ParameterStore, PROJECTION_NAME } from './parameters.ts';
import type { StepPrograms } from './step-programs.ts';

/** Σ over label positions of weight · value, in nats: the loss that is differentiated, KL (without T²), CE, hidden. */
export interface LossSums {
  readonly loss: number;
  readonly kl: number;
  readonly ce: number;
  readonly hidden: number;
}

export const ZERO_SUMS: LossSums = { loss: 0, kl: 0, ce: 0, hidden: 0 };

export function addSums(a: LossSums, b: LossSums): LossSums {
  return { loss: a.loss + b.loss, kl: a.kl + b.kl, ce: a.ce + b.ce, hidden: a.hidden + b.hidden };
}

/** Rows of ids with the labels of their target positions; `labels.rows` counts these sequences. */
export interface MicroBatch {
  readonly sequences: readonly Int32Array[];
  readonly labels: LabelArrays;
}

export interface LossScalars {
  readonly temperature: number;
  readonly alpha: number;
  readonly hiddenWeight: number;
}

/** What the loss reads besides the batch, on the device for the whole run. */
export interface LossSetting {
  readonly objective: Objective;
  readonly scalars: LossScalars;
  /** Rows of the output matrix that take part. */
  readonly vocabSize: number;
  /** The teacher's output matrix [vocabSize, teacher width], for `full` labels. */
  readonly teacherHead?: DeviceTensor;
  /** Label positions whose logits exist at a time. */
  readonly chunkPositions: number;
  /** Share of each row's target positions that count, those of the student's highest entropy; 1 is all. */
  readonly selectTokens: number;
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

const LOSS_TERMS = 4;

/** Runs micro-batches of one student under one objective. */
export function createMicroBatchRunner(
  engine: Engine,
  programs: StepPrograms,
  store: ParameterStore,
  setting: LossSetting,
  float: FloatDtype,
): MicroBatchRunner {
  const { forward, plan } = programs;
  const { config } = forward;
  const { objective, vocabSize } = setting;
  const scalar = (value: number) => {
    const tensor = engine.allocate(float, []);
    engine.fill(tensor, value);
    return tensor;
  };
  const scalars = {
    temperature: scalar(setting.scalars.temperature),
    alpha: scalar(setting.scalars.alpha),
    hiddenWeight: scalar(setting.scalars.hiddenWeight),
  };
  const cut = (tensor: DeviceTensor) => engine.view(tensor, { offset: 0, shape: [vocabSize, config.hiddenSize] });
  const norm = store.get('model.norm.weight');
  const head = cut(store.outputMatrix.weight);
  const projection = objective.hidden?.hasProjection ? store.get(PROJECTION_NAME) : undefined;
  const accumulators = Object.entries({
    norm: norm.gradient,
    head: store.outputMatrix.gradient && cut(store.outputMatrix.gradient),
    projection: projection?.gradient,
  }).filter((entry): entry is [string, DeviceTensor] => entry[1] !== undefined);
  const fixedInputs: Record<string, DeviceTensor> = {
    norm: norm.weight,
    head,
    ...Object.fromEntries(accumulators.map(([name, gradient]) => [`gradient.${name}`, gradient])),
    ...(objective.labels.kind === 'none' ? {} : { temperature: scalars.temperature, alpha: scalars.alpha }),
    ...(objective.hidden === undefined ? {} : { hiddenWeight: scalars.hiddenWeight }),
    ...(projection === undefined ? {} : { projection: projection.weight }),
    ...(setting.teacherHead === undefined ? {} : { 'teacher.head': setting.teacherHead }),
  };
  const fixedOutputs = Object.fromEntries(accumulators.map(([name, gradient]) => [`gradient.${name}.sum`, gradient]));
  /** Whether anything before the final norm learns. */
  const goesBack = plan.hasEmbeddingGradient || plan.lowestLayer < config.layerCount;

  /** Everything the batch needs on the device for as long as it runs. */
  const open: DeviceTensor[] = [];
  const hold = (tensor: DeviceTensor) => {
    open.push(tensor);
    return tensor;
  };

  const uploadFloats = (data: Float64Array) =>
    hold(engine.upload(float === 'float64' ? data : Float32Array.from(data), float, [data.length]));
  const viewPart = (tensor: DeviceTensor, from: number, to: number) =>
    engine.view(tensor, { offset: from, shape: [to - from] });

  /** Positions `from` to `to` of a micro-batch, and their residual stream after the last layer. */
  interface Chunk {
    readonly from: number;
    readonly to: number;
    readonly indices: DeviceTensor;
    readonly rows: DeviceTensor;
  }

  /** Entropies of all chunks first, as a position is judged among all of its row. */
  function selectionCalls(
    { entropy, select }: NonNullable<StepPrograms['selection']>,
    { rows, count }: LabelArrays,
    chunks: readonly Chunk[],
    weights: DeviceTensor,
    selected: DeviceTensor,
  ): readonly Call[] {
    const entropies = hold(engine.allocate(float, [count]));
    const calls = chunks.map((chunk): Call => {
      const outputs = { entropy: viewPart(entropies, chunk.from, chunk.to) };
      return { kind: 'run', program: entropy, inputs: { x: chunk.rows, norm: norm.weight, head }, outputs };
    });
    const order = uploadFloats(Float64Array.from({ length: count }, (_, n) => n));
    for (let start = 0, end = 0; start < count; start = end) {
      while (end < count && rows[end] === rows[start]) end += 1;
      const kept = hold(scalar(countSelected(end - start, setting.selectTokens)));
      const row = { 'row.entropy': viewPart(entropies, start, end), 'row.order': viewPart(order, start, end), kept };
      for (let from = start; from < end; from += setting.chunkPositions) {
        const to = Math.min(end, from + setting.chunkPositions);
        const part = (tensor: DeviceTensor) => viewPart(tensor, from, to);
        const own = { entropy: part(entropies), order: part(order), weights: part(weights) };
        calls.push({ kind: 'run', program: select, inputs: { ...own, ...row }, outputs: { selected: part(selected) } });
      }
    }
    return calls;
  }

  function lossCalls(
    batch: TokenBatch,
    labels: LabelArrays,
    denominator: number,
    x: DeviceTensor,
    dx: DeviceTensor | undefined,
    sums: DeviceTensor,
  ): readonly Call[] {
    const byPlacement = batch.placements;
    const flat = BigInt64Array.from(labels.positions, (position, n) =>
      BigInt(flatIndex(batch, byPlacement[labels.rows[n]!]!, position)),
    );
    const chunks: Chunk[] = [];
    for (let from = 0; from < labels.count; from += setting.chunkPositions) {
      const to = Math.min(labels.count, from + setting.chunkPositions);
      const indices = hold(engine.upload(flat.slice(from, to), 'int64', [to - from]));
      chunks.push({ from, to, indices, rows: hold(engine.allocate(float, [to - from, config.hiddenSize])) });
    }
    const given = labels.weights ?? new Float64Array(labels.count).fill(1);
    let weights = uploadFloats(given.map((weight) => weight / denominator));
    const calls = chunks.map(({ indices, rows }): Call => {
      return { kind: 'run', program: forward.gatherRows, inputs: { x, indices }, outputs: { rows } };
    });
    if (programs.selection !== undefined) {
      const selected = hold(engine.allocate(float, [labels.count]));
      calls.push(...selectionCalls(programs.selection, labels, chunks, weights, selected));
      weights = selected;
    }
    for (const [chunk, { from, to, indices, rows }] of chunks.entries()) {
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
          labels: hold(engine.upload(labels.labels.slice(from, to), 'int64', [size])),
          weights: viewPart(weights, from, to),
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
      const inputs = { x: dx, indices, rows: dRows };
      calls.push({ kind: 'run', program: programs.scatterRows, inputs, outputs: { 'x.sum': dx } });
    }
    return calls;
  }

  const activations = createActivationStore(engine, float);

  function backwardCalls(
    tensors: BatchTensors,
    states: readonly DeviceTensor[],
    saved: readonly Readonly<Record<string, DeviceTensor>>[],
    dy: DeviceTensor,
    dx: DeviceTensor,
  ): readonly Call[] {
    const { cos, sin, bias, ids } = tensors;
    const calls: Call[] = [];
    let [upstream, downstream] = [dy, dx];
    for (let layer = config.layerCount - 1; layer >= plan.lowestLayer; layer--) {
      const { inputs, outputs } = store.layerGradients[layer]!;
      const { gradient, hasInputGradient } = programs.layers[layer]!;
      calls.push({
        kind: 'run',
        program: gradient!,
        inputs: pick(gradient!, {
          ...{ x: states[layer]!, dy: upstream, cos, sin, bias },
          ...store.layerWeights[layer]!,
          ...inputs,
          ...saved[layer]!,
        }),
        outputs: { ...(hasInputGradient ? { dx: downstream } : {}), ...outputs },
      });
      [upstream, downstream] = [downstream, upstream];
    }
    const table = store.embedding.gradient;
    if (table === undefined) return calls;
    calls.push({
      kind: 'run',
      program: programs.embeddingGradient,
      inputs: { ids, dx: upstream, 'gradient.table': table },
      outputs: { 'gradient.table.sum': table },
    });
    return calls;
  }

  return {
    setScalars(values) {
      for (const [name, value] of Object.entries(values)) engine.fill(scalars[name as keyof LossScalars], value);
    },
    async accumulate({ sequences, labels }, denominator) {
      if (labels.count === 0) return ZERO_SUMS;
      const batch = packSequences(sequences);
      const tensors = uploadBatch(engine, forward, batch);
      try {
        const state = () => hold(engine.allocate(float, [tensors.tokens, config.hiddenSize]));
        // Below the lowest layer that is run backwards no state is needed again: two buffers in turns.
        const inTurns = plan.lowestLayer === 0 ? [] : [state(), state()];
        const states = Array.from({ length: config.layerCount + 1 }, (_, layer) =>
          layer < plan.lowestLayer ? inTurns[layer % 2]! : state(),
        );
        const saved = programs.layers.map((layer, n) => activations.take(n, layer.saved, batch.rows, batch.length));
        const back = goesBack ? ([state(), state()] as const) : undefined;
        const chunks = Math.ceil(labels.count / setting.chunkPositions);
        const sums = hold(engine.allocate(float, [chunks, LOSS_TERMS]));
        await engine.run([
          tablesCall(forward, tensors),
          embeddingCall(forward, tensors, store.embedding.weight, states[0]!),
          ...store.layerWeights.map((weights, layer): Call => {
            const { cos, sin, bias } = tensors;
            const inputs = { x: states[layer]!, cos, sin, bias, ...weights };
            const outputs = { y: states[layer + 1]!, ...saved[layer]! };
            return { kind: 'run', program: programs.layers[layer]!.block, inputs, outputs };
          }),
          ...lossCalls(batch, labels, denominator, states[config.layerCount]!, back?.[0], sums),
          ...(back === undefined ? [] : backwardCalls(tensors, states, saved, ...back)),
        ]);
        return readSums((await engine.download(sums)) as FloatData);
      } finally {
        freeBatch(engine, tensors);
        activations.release();
        for (const tensor of open.splice(0)) engine.free(tensor);
      }
    },
  };
}

function readSums(values: FloatData): LossSums {
  const sums = [0, 0, 0, 0];
  values.forEach((value: number, i: number) => {
    sums[i % LOSS_TERMS]! += value;
  });
  const [loss, kl, ce, hidden] = sums;
  return { loss: loss!, kl: kl!, ce: ce!, hidden: hidden! };
}

/** The tensors that a program has inputs for: with saved activations a gradient needs less. */
function pick(
  program: Program,
  tensors: Readonly<Record<string, DeviceTensor>>,
): Readonly<Record<string, DeviceTensor>> {
  return Object.fromEntries(program.inputNames.map((name) => [name, tensors[name]!]));
}
