import { freeBatch, packSequences, type TokenBatch, uploadBatch } from '@stillhouse/model-runner';
import type { LabelArrays } from '@stillhouse/objectives';
import type { DeviceTensor, Engine } from '@stillhouse/runtime';
import { openLabelPositions } from '../data/label-positions.ts';
import type { TrainingPlan } from '../plan/training-plan.ts';
import { statesOf } from '../settings/layer-pairs.ts';
import { createActivationStore } from './activation-store.ts';
import { type FeatureContext, openFeatureLosses } from './feature-losses.ts';
import { backwardCalls, forwardCalls, openLayerPass } from './layer-pass.ts';
import { type LossScalars, openLossScalars } from './loss-scalars.ts';
import { openOutputLoss, readLossSums, sumsShape } from './output-loss.ts';
import type { FloatData } from './parameters.ts';
import { openRowTiles } from './row-tiles.ts';
import type { StepSetting } from './step-setting.ts';

/**
 * Σ over label positions of weight · value: the loss that is differentiated, KL (without T²) and CE, in nats, features.
 */
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

/**
 * Runs micro-batches of one student under one objective.
 *
 * The loop over layers is the training step's own. It goes down as well as up: each layer's activations are kept for
 * its gradient or computed again, gradients take the layers in reverse, and feature losses read states, and add to
 * gradients, between two layers. A pass that is run for its outputs has none of this, and would carry all of it.
 */
export function createMicroBatchRunner(engine: Engine, plan: TrainingPlan, setting: StepSetting): MicroBatchRunner {
  const { programs, store, float } = setting;
  const { config, objective, chunkPositions, selectTokens } = plan;
  const { hiddenSize } = config;
  const { forward, scatterRows, selection } = programs;
  const scalars = openLossScalars(engine, float, programs.features);
  scalars.set(setting.scalars);
  const outputLoss = openOutputLoss(engine, plan, setting, scalars);
  const activations = createActivationStore(engine, float);
  /** Everything the batch needs on the device for as long as it runs. */
  const open: DeviceTensor[] = [];
  const hold = (tensor: DeviceTensor) => {
    open.push(tensor);
    return tensor;
  };
  const shared = { gatherRows: forward.gatherRows, hiddenSize, float };
  const featureContext: FeatureContext = {
    ...{ ...shared, features: programs.features, scatterRows, store },
    weightOf: (match) => scalars.shares[statesOf(match)],
  };
  const positionsContext = {
    ...{ ...shared, selection, chunkPositions, selectTokens, hold },
    norm: store.norm.weight,
    head: outputLoss.head,
  };
  const accumulate: MicroBatchRunner['accumulate'] = async (
    { sequences, batch = packSequences(sequences), labels },
    denominator,
  ) => {
    if (labels.count === 0) return ZERO_SUMS;
    const layers = await programs.layers.take(batch.queryBlocks);
    const tensors = uploadBatch(engine, forward, batch);
    const tiles = openRowTiles(engine, batch.rows, batch.length, plan.tileTokens);
    try {
      const pass = openLayerPass(engine, plan, setting, { batch, tensors, layers, tiles, activations, hold });
      const sums = hold(engine.allocate(float, sumsShape(labels.count, chunkPositions)));
      const x = pass.states[plan.backward.runLayers]!;
      const positions = openLabelPositions(engine, positionsContext, { batch, labels, denominator, x });
      const features =
        programs.features.length === 0 ? undefined : openFeatureLosses(engine, featureContext, { ...positions, hold });
      const targets = { dx: pass.back?.[0], sums, hold };
      await engine.run([
        ...forwardCalls(pass, plan, setting),
        ...positions.calls,
        ...(objective.isFeaturesOnly === true ? [] : outputLoss.calls(positions, targets)),
        ...backwardCalls(engine, pass, plan, { setting, features }),
      ]);
      const { loss, ...others } = readLossSums((await engine.download(sums)) as FloatData);
      const distances = await features?.readSums();
      return { ...others, loss: loss + (distances?.loss ?? 0), features: distances?.distances ?? [] };
    } finally {
      tiles.close();
      freeBatch(engine, tensors);
      activations.release();
      for (const tensor of open.splice(0)) engine.free(tensor);
    }
  };
  return { accumulate, setScalars: scalars.set };
}
