import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { DeviceTensor, Engine } from '@stillhouse/runtime';
import { type PairedStates, statesOf } from '../settings/layer-pairs.ts';
import type { FeatureProgram } from './feature-losses.ts';

export interface LossScalars {
  readonly temperature: number;
  readonly alpha: number;
  /**
   * Of the mean distance over the objective's features that are hidden states, and over those that are attention
   * outputs.
   */
  readonly hiddenWeight: number;
  /** Default 0. */
  readonly attentionWeight?: number;
}

/** Numbers of the loss on the device, which may change from step to step. */
export interface ScalarTensors {
  readonly temperature: DeviceTensor;
  readonly alpha: DeviceTensor;
  /** What one match weighs, by the kind of its states. */
  readonly shares: Readonly<Record<PairedStates, DeviceTensor>>;
  set(scalars: Partial<LossScalars>): void;
}

export function openLossScalars(engine: Engine, float: FloatDtype, features: readonly FeatureProgram[]): ScalarTensors {
  const scalar = (value: number) => {
    const tensor = engine.allocate(float, []);
    engine.fill(tensor, value);
    return tensor;
  };
  const [temperature, alpha] = [scalar(1), scalar(1)];
  const shares = { hidden: scalar(0), attention: scalar(0) };
  const setShare = (states: PairedStates, weight: number) => {
    const count = features.filter(({ match }) => statesOf(match) === states).length;
    engine.fill(shares[states], weight / Math.max(1, count));
  };
  return {
    temperature,
    alpha,
    shares,
    set: (scalars) => {
      if (scalars.temperature !== undefined) engine.fill(temperature, scalars.temperature);
      if (scalars.alpha !== undefined) engine.fill(alpha, scalars.alpha);
      if (scalars.hiddenWeight !== undefined) setShare('hidden', scalars.hiddenWeight);
      if (scalars.attentionWeight !== undefined) setShare('attention', scalars.attentionWeight);
    },
  };
}
