import { sliceLabel } from '@stillhouse/objectives';
import type { Call, DeviceTensor, Engine } from '@stillhouse/runtime';
import type { LabelPositions, StreamChunk } from '../data/label-positions.ts';
import type { TrainingPlan } from '../plan/training-plan.ts';
import type { ScalarTensors } from './loss-scalars.ts';
import type { FloatData } from './parameters.ts';
import type { StepSetting } from './step-setting.ts';

/** Terms of the loss that a chunk gives. */
const LOSS_TERMS = 3;

/** Where the loss of a micro-batch puts its results. */
export interface LossTargets {
  /** [B·T, H]: the gradient of the residual stream; `undefined` where nothing before the final norm learns. */
  readonly dx: DeviceTensor | undefined;
  /** [chunks, 3] */
  readonly sums: DeviceTensor;
  /** Takes note of a tensor that is to be freed with the micro-batch. */
  readonly hold: (tensor: DeviceTensor) => DeviceTensor;
}

/** The loss over the student's output distribution, a chunk of label positions at a time. */
export interface OutputLoss {
  /** Rows of the output matrix that take part. */
  readonly head: DeviceTensor;
  calls(positions: LabelPositions, targets: LossTargets): readonly Call[];
}

/** Room for the sums of a micro-batch. */
export const sumsShape = (labelCount: number, chunkPositions: number): readonly number[] => [
  Math.ceil(labelCount / chunkPositions),
  LOSS_TERMS,
];

export function openOutputLoss(
  engine: Engine,
  { config: { hiddenSize }, objective, vocabSize }: TrainingPlan,
  { programs, store, float, teacherHead }: StepSetting,
  scalars: ScalarTensors,
): OutputLoss {
  const cut = (tensor: DeviceTensor) => engine.view(tensor, { offset: 0, shape: [vocabSize, hiddenSize] });
  const { norm, outputMatrix } = store;
  const head = cut(outputMatrix.weight);
  const accumulators = Object.entries({
    norm: norm.gradient,
    head: outputMatrix.gradient && cut(outputMatrix.gradient),
  }).filter((entry): entry is [string, DeviceTensor] => entry[1] !== undefined);
  const fixedInputs: Record<string, DeviceTensor> = {
    norm: norm.weight,
    head,
    ...Object.fromEntries(accumulators.map(([name, gradient]) => [`gradient.${name}`, gradient])),
    ...(objective.labels.kind === 'none' ? {} : { temperature: scalars.temperature, alpha: scalars.alpha }),
    ...(teacherHead === undefined ? {} : { 'teacher.head': teacherHead }),
  };
  const fixedOutputs = Object.fromEntries(accumulators.map(([name, gradient]) => [`gradient.${name}.sum`, gradient]));
  const chunkCalls = (
    { labels, weights }: LabelPositions,
    chunk: number,
    { from, to, indexColumn, rows }: StreamChunk,
    { dx, sums, hold }: LossTargets,
  ): readonly Call[] => {
    const size = to - from;
    const dRows = dx === undefined ? undefined : hold(engine.allocate(float, [size, hiddenSize]));
    const teacher = [...labels.teacher].map(([name, array]) => {
      const part = sliceLabel(array, from, to);
      return [name, hold(engine.upload(part.data as FloatData, part.dtype, part.shape))] as const;
    });
    const loss: Call = {
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
    };
    if (dx === undefined || dRows === undefined) return [loss];
    const inputs = { x: dx, indices: indexColumn, rows: dRows };
    return [loss, { kind: 'run', program: programs.scatterRows, inputs, outputs: { 'x.sum': dx } }];
  };
  return {
    head,
    calls: (positions, targets) => positions.chunks.flatMap((chunk, at) => chunkCalls(positions, at, chunk, targets)),
  };
}

/** The loss that is differentiated, KL and CE over all chunks. */
export function readLossSums(values: FloatData): { readonly loss: number; readonly kl: number; readonly ce: number } {
  const sums = [0, 0, 0];
  values.forEach((value: number, i: number) => {
    sums[i % LOSS_TERMS]! += value;
  });
  const [loss, kl, ce] = sums;
  return { loss: loss!, kl: kl!, ce: ce! };
}
