import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { DeviceTensor } from '@stillhouse/runtime';
import type { LossScalars } from './loss-scalars.ts';
import type { ParameterStore } from './parameters.ts';
import type { StepPrograms } from './step-programs.ts';

/** What runs a micro-batch, on the device for the whole run. */
export interface StepSetting {
  readonly programs: StepPrograms;
  readonly store: ParameterStore;
  readonly float: FloatDtype;
  readonly scalars: LossScalars;
  /** The teacher's output matrix [vocabSize, teacher width], for `full` labels. */
  readonly teacherHead?: DeviceTensor;
}
