import type { FloatArray, SoftLabels } from '@stillhouse/objectives';
import type { DeviceTensor } from '@stillhouse/runtime';
import type { HiddenScale, LabelledRow } from '@stillhouse/teacher-cache';

/** Positions of some rows at which labels are held against the truth. */
export interface QualitySample {
  /** For each row the positions that are measured: its first so many target positions, ascending. */
  readonly rows: readonly { readonly positions: Int32Array }[];
  /** [n, teacher width]: the teacher's true final hidden states there, rows in order. */
  readonly teacherStates: FloatArray;
  /** [V, teacher width], its output matrix; as many rows as take part. */
  readonly teacherHead: DeviceTensor;
  /** [n, student width]: what enters the student's output matrix. */
  readonly studentStates: FloatArray;
  /** [V, student width] */
  readonly studentHead: DeviceTensor;
}

/** A way of labelling: of a cache, or of a cache that might be built. */
export interface LabelMode {
  readonly name: string;
  /** What its labels take at a position; null where that is not known. */
  readonly bytesPerToken: number | null;
  /** The labels at a temperature; undefined where the mode has none. */
  labelsAt(temperature: number): SoftLabels | undefined;
  /** The labels of one row of the sample, at all its stored positions, as a cache would give them. */
  readRow(row: number): Promise<LabelledRow>;
  /** The grid of log_z. */
  readonly temperatures?: readonly number[];
  /** The temperature of draws. */
  readonly sampledTemperature?: number;
  /** What final hidden states are decoded with. */
  readonly hiddenScale?: HiddenScale;
  /** The matrix that the states of `full` labels meet; left out: the teacher's. */
  readonly head?: DeviceTensor;
}
