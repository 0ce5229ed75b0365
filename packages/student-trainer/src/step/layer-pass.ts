import { ATTENTION_OUTPUT, ATTENTION_SEED } from '@stillhouse/decoder';
import { type BatchTensors, embeddingCall, type TokenBatch } from '@stillhouse/model-runner';
import type { Call, DeviceTensor, Engine, Program } from '@stillhouse/runtime';
import type { HiddenLayer } from '@stillhouse/teacher-cache';
import { takesGradient } from '../plan/backward-plan.ts';
import type { TrainingPlan } from '../plan/training-plan.ts';
import type { ActivationStore } from './activation-store.ts';
import { embeddingGradientCalls } from './embedding-gradient.ts';
import type { FeatureLosses } from './feature-losses.ts';
import type { RowTiles } from './row-tiles.ts';
import type { LayerPrograms } from './step-programs.ts';
import type { StepSetting } from './step-setting.ts';

type Tensors = Readonly<Record<string, DeviceTensor>>;

/** A micro-batch on its way up and down the layers. */
export interface LayerPass extends PassBatch {
  /** The residual stream before each layer, and after the last that is run; [B·T, H] each. */
  readonly states: readonly DeviceTensor[];
  /** Activations of each layer that are kept for its gradient. */
  readonly saved: readonly Tensors[];
  /** Of each layer whose attention output is held to a teacher's. */
  readonly attentionOutputs: readonly (DeviceTensor | undefined)[];
  /** The gradient of such an output, of one layer after the other. */
  readonly dAttention: DeviceTensor | undefined;
  /** Two buffers for the gradient of the residual stream in turns; the first comes with that of the loss. */
  readonly back: readonly [DeviceTensor, DeviceTensor] | undefined;
}

export interface PassBatch {
  readonly batch: TokenBatch;
  readonly tensors: BatchTensors;
  readonly layers: readonly LayerPrograms[];
  readonly tiles: RowTiles;
  readonly activations: ActivationStore;
  /** Takes note of a tensor that is to be freed with the micro-batch. */
  readonly hold: (tensor: DeviceTensor) => DeviceTensor;
}

export function openLayerPass(
  engine: Engine,
  { config, backward }: TrainingPlan,
  { programs, float }: StepSetting,
  given: PassBatch,
): LayerPass {
  const { batch, tensors, layers, activations, hold } = given;
  const { lowestLayer, runLayers } = backward;
  const matched = new Set(programs.features.map(({ match }) => match.student));
  const state = () => hold(engine.allocate(float, [tensors.tokens, config.hiddenSize]));
  // Below the lowest layer that is run backwards no state is needed again: two buffers in turns.
  const inTurns = lowestLayer === 0 ? [] : [state(), state()];
  return {
    ...given,
    states: Array.from({ length: runLayers + 1 }, (_, layer) =>
      layer < lowestLayer && !matched.has(layer) ? inTurns[layer % 2]! : state(),
    ),
    saved: layers.map((layer, n) => activations.take(n, layer.saved, batch)),
    attentionOutputs: layers.map(({ exposesAttention }) => (exposesAttention ? state() : undefined)),
    dAttention: layers.some(({ exposesAttention }) => exposesAttention) ? state() : undefined,
    // Where anything before the final norm learns.
    back: takesGradient(backward, runLayers) ? [state(), state()] : undefined,
  };
}

export function forwardCalls(pass: LayerPass, { backward }: TrainingPlan, setting: StepSetting): readonly Call[] {
  const { store, programs } = setting;
  const { tensors, layers, tiles, states, saved, attentionOutputs } = pass;
  const { tables, shared } = tensors;
  return [
    ...tensors.biasCalls,
    embeddingCall(programs.forward, tensors, store.embedding.weight, states[0]!),
    ...store.layerWeights.slice(0, backward.runLayers).flatMap((weights, layer) =>
      Array.from({ length: tiles.count }, (_, tile): Call => {
        const inputs = { ...tiles.cut({ x: states[layer]!, ...tables }, tile), ...shared, ...weights };
        const attention = attentionOutputs[layer];
        const exposed = attention === undefined ? {} : { [ATTENTION_OUTPUT]: attention };
        const outputs = tiles.cut({ y: states[layer + 1]!, ...saved[layer]!, ...exposed }, tile);
        return { kind: 'run', program: layers[layer]!.block, inputs, outputs };
      }),
    ),
  ];
}

/**
 * From the last layer that is run to the embedding; a layer's states are held to the teacher's where the gradient
 * passes them.
 */
export function backwardCalls(
  engine: Engine,
  pass: LayerPass,
  { backward: { runLayers, lowestLayer } }: TrainingPlan,
  { setting, features }: { readonly setting: StepSetting; readonly features: FeatureLosses | undefined },
): readonly Call[] {
  const { states, batch, hold } = pass;
  let [upstream, downstream] = pass.back ?? [];
  const featureCalls = (layer: HiddenLayer, x: DeviceTensor): readonly Call[] =>
    features?.calls(layer, { x, dx: upstream }) ?? [];
  const last = states[runLayers]!;
  const calls: Call[] = [...featureCalls('final', last), ...featureCalls(runLayers, last)];
  for (let layer = runLayers - 1; layer >= 0; layer--) {
    calls.push(...attentionCalls(pass, layer, features));
    if (layer >= lowestLayer) {
      calls.push(...layerGradientCalls(pass, setting, layer, { dy: upstream!, dx: downstream! }));
      [upstream, downstream] = [downstream, upstream];
    }
    calls.push(...featureCalls(layer, states[layer]!));
  }
  const table = setting.store.embedding.gradient;
  if (table === undefined) return calls;
  const program = setting.programs.embeddingGradient;
  calls.push(...embeddingGradientCalls(engine, { program, ids: batch.ids, dx: upstream!, table, hold }));
  return calls;
}

function attentionCalls(
  { attentionOutputs, dAttention }: LayerPass,
  layer: number,
  features: FeatureLosses | undefined,
): readonly Call[] {
  const x = attentionOutputs[layer];
  if (x === undefined) return [];
  const calls = features!.calls(`attention.${layer + 1}`, { x, dx: dAttention });
  return [{ kind: 'fill', tensor: dAttention!, value: 0 }, ...calls];
}

function layerGradientCalls(
  { tensors: { tables, shared }, layers, tiles, states, saved, dAttention }: LayerPass,
  { store }: StepSetting,
  layer: number,
  { dy, dx }: { readonly dy: DeviceTensor; readonly dx: DeviceTensor },
): readonly Call[] {
  const { inputs, outputs } = store.layerGradients[layer]!;
  const { gradient, hasInputGradient, exposesAttention } = layers[layer]!;
  const given = {
    ...{ x: states[layer]!, dy, ...tables },
    ...(exposesAttention ? { [ATTENTION_SEED]: dAttention! } : {}),
    ...saved[layer]!,
  };
  return Array.from(
    { length: tiles.count },
    (_, tile): Call => ({
      kind: 'run',
      program: gradient!,
      inputs: pick(gradient!, { ...tiles.cut(given, tile), ...shared, ...store.layerWeights[layer]!, ...inputs }),
      outputs: { ...(hasInputGradient ? tiles.cut({ dx }, tile) : {}), ...outputs },
    }),
  );
}

/** The tensors that a program has inputs for: with saved activations a gradient needs less. */
const pick = (program: Program, tensors: Tensors): Tensors =>
  Object.fromEntries(program.inputNames.map((name) => [name, tensors[name]!]));
