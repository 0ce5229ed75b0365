import {
  blockGradientGraph,
  embeddingGradientGraph,
  type LowRankAdapter,
  type PerQueryBlocks,
  perQueryBlocks,
  type SavedActivation,
  savingBlockGraphs,
  scatterRowsGraph,
} from '@stillhouse/decoder';
import { compileForwardPrograms, exposingBlocks, type ForwardPrograms } from '@stillhouse/model-runner';
import { entropyGraph, lossGraph, selectionGraph } from '@stillhouse/objectives';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { Engine, Program } from '@stillhouse/runtime';
import { gradientOptions, type LayerBackward, layerKey } from '../plan/backward-plan.ts';
import type { TrainingPlan } from '../plan/training-plan.ts';
import { compileFeaturePrograms, type FeatureProgram } from './feature-losses.ts';

/** The programs of a layer. Layers of which the same is wanted share theirs. */
export interface LayerPrograms {
  /** Forwards: y, and the saved activations where there are any. */
  readonly block: Program;
  /** Backwards; `undefined` where nothing learns in the layer or below it. */
  readonly gradient: Program | undefined;
  readonly hasInputGradient: boolean;
  /** Whether `block` gives the attention output too, and `gradient` takes its gradient. */
  readonly exposesAttention: boolean;
  /** Activations that are kept from the forward pass to the gradient; none when the gradient computes them again. */
  readonly saved: readonly SavedActivation[];
}

/** Every program of a training step. Their number and size do not depend on the depth of the student. */
export interface StepPrograms {
  readonly forward: ForwardPrograms;
  /** By layer. */
  readonly layers: PerQueryBlocks<readonly LayerPrograms[]>;
  readonly embeddingGradient: Program;
  readonly scatterRows: Program;
  readonly loss: Program;
  /** The matches of the student's states with the teacher's, in the order of the objective. */
  readonly features: readonly FeatureProgram[];
  /** Where only some positions count: the student's entropy, and which positions it leaves. */
  readonly selection: { readonly entropy: Program; readonly select: Program } | undefined;
}

export async function compileStepPrograms(
  engine: Engine,
  plan: TrainingPlan,
  float: FloatDtype,
): Promise<StepPrograms> {
  const { config, objective, vocabSize, lossGradients } = plan;
  const { hiddenSize, rmsNormEpsilon } = config;
  const forward = await compileForwardPrograms(engine, config, float, plan.adapter);
  const readout = { hiddenSize, vocabSize, rmsNormEpsilon };
  const [embeddingGradient, scatterRows, loss] = await Promise.all(
    [
      embeddingGradientGraph(config, float),
      scatterRowsGraph(hiddenSize, float),
      lossGraph(objective, readout, float, lossGradients),
    ].map((graph) => engine.compile(graph)),
  );
  return {
    forward,
    layers: perQueryBlocks((queryBlocks) => compileLayers(engine, plan, forward, queryBlocks)),
    embeddingGradient: embeddingGradient!,
    scatterRows: scatterRows!,
    loss: loss!,
    features: await compileFeaturePrograms(engine, plan, float),
    selection:
      plan.selectTokens < 1
        ? {
            entropy: await engine.compile(entropyGraph(readout, float)),
            select: await engine.compile(selectionGraph(float)),
          }
        : undefined,
  };
}

async function compileLayers(
  engine: Engine,
  { config, recompute, backward }: TrainingPlan,
  forward: ForwardPrograms,
  queryBlocks: number,
): Promise<readonly LayerPrograms[]> {
  const { float } = forward;
  const compileBare = async (exposesAttention: boolean, adapter: LowRankAdapter | undefined) => {
    if (exposesAttention) return exposingBlocks(engine, forward, adapter).take(queryBlocks);
    return (adapter === undefined ? forward.block : forward.adaptedBlock!).take(queryBlocks);
  };
  const compileForwardOnly = async (exposesAttention: boolean): Promise<LayerPrograms> => {
    const block = await compileBare(exposesAttention, undefined);
    return { block, gradient: undefined, hasInputGradient: false, exposesAttention, saved: [] };
  };
  const compile = async (layer: LayerBackward): Promise<LayerPrograms> => {
    const { hasInputGradient, hasAttentionSeed: exposesAttention, adapter } = layer;
    const shared = { hasInputGradient, exposesAttention };
    const wanted = gradientOptions(layer, queryBlocks);
    if (recompute) {
      const gradient = await engine.compile(blockGradientGraph(config, float, wanted));
      return { ...shared, block: await compileBare(exposesAttention, adapter), gradient, saved: [] };
    }
    const { saved, forward: block, gradient } = savingBlockGraphs(config, float, wanted);
    return {
      ...shared,
      block: saved.length === 0 ? await compileBare(exposesAttention, adapter) : await engine.compile(block),
      gradient: await engine.compile(gradient),
      saved,
    };
  };
  const compiled = new Map<string, LayerPrograms>();
  const layers: LayerPrograms[] = [];
  for (const [n, layer] of backward.layers.entries()) {
    const exposesAttention = backward.attentionLayers.has(n);
    const key = layer === undefined ? String(exposesAttention) : layerKey(layer);
    const programs =
      compiled.get(key) ?? (layer === undefined ? await compileForwardOnly(exposesAttention) : await compile(layer));
    compiled.set(key, programs);
    layers.push(programs);
  }
  return layers;
}
