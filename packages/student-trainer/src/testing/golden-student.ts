import { openSafetensors, readModelConfig } from '@stillhouse/checkpoint';
import type { LabelArray, LabelArrays, Objective, TailKind } from '@stillhouse/objectives';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { Engine } from '@stillhouse/runtime';
import { PROJECTION_NAME } from '../plan/projections.ts';
import type { MicroBatch } from '../step/micro-batch.ts';
import { createStudent, type Student, type StudentOptions } from '../step/student.ts';

const GOLDEN = new URL('../../../../test/golden/', import.meta.url).pathname;
/** Ten steps of a tiny student that PyTorch took. */
export const TRAIN = `${GOLDEN}train-10-steps/`;
const [ROWS, LENGTH, K, HIDDEN] = [3, 16, 16, 64];

const batches = await openSafetensors(`${TRAIN}batches.safetensors`);
const integers = async (name: string) =>
  Array.from((await batches.readInt(name)) as unknown as ArrayLike<bigint>, Number);
const [ids, attention, labels, mask, topkIds] = await Promise.all(
  ['input_ids', 'attention_mask', 'labels', 'loss_mask', 'topk_ids'].map(integers),
);

/** Golden batches as micro-batches of the given row groups; masks there are aligned to positions. */
export async function readStep(
  step: number,
  tail: TailKind,
  float: FloatDtype,
  groups: readonly (readonly number[])[] = [[0, 1, 2]],
) {
  const suffix = tail === 'tail' ? '_t2' : '';
  const [logprobs, tails, teacher] = await Promise.all(
    [`topk_logprobs${suffix}`, `tail_logprob${suffix}`, 'teacher_hidden'].map((name) => batches.read(name, 'float64')),
  );
  const make = (values: readonly number[]) =>
    float === 'float64' ? Float64Array.from(values) : Float32Array.from(values);
  const microBatches = groups.map((rows): MicroBatch => {
    const at = (row: number, t: number) => (step * ROWS + row) * LENGTH + t;
    const targets = rows.flatMap((row, index) =>
      Array.from({ length: LENGTH }, (_, t) => ({ row, index, t })).filter(({ t }) => mask![at(row, t)] === 1),
    );
    const gather = (array: ArrayLike<number>, width: number) =>
      targets.flatMap(({ row, t }) => Array.from({ length: width }, (_, i) => array[at(row, t) * width + i]!));
    const array = (values: ArrayLike<number>, width: number | undefined): LabelArray => ({
      dtype: float,
      data: make(gather(values, width ?? 1)),
      width,
    });
    const arrays: LabelArrays = {
      count: targets.length,
      rows: Int32Array.from(targets, ({ index }) => index),
      positions: Int32Array.from(targets, ({ t }) => t),
      labels: BigInt64Array.from(gather(labels!, 1), BigInt),
      teacher: new Map<string, LabelArray>([
        ['teacher.topk_ids', { dtype: 'int64', data: BigInt64Array.from(gather(topkIds!, K), BigInt), width: K }],
        ['teacher.topk_logprobs', array(logprobs!, K)],
        ['teacher.tail_logprob', array(tails!, undefined)],
      ]),
      features: new Map([['final', array(teacher!, HIDDEN)]]),
    };
    const sequences = rows.map((row) =>
      Int32Array.from(
        Array.from({ length: LENGTH }, (_, t) => t).filter((t) => attention![at(row, t)] === 1),
        (t) => ids![at(row, t)]!,
      ),
    );
    return { sequences, labels: arrays };
  });
  const targets = microBatches.reduce((sum, { labels: { count } }) => sum + count, 0);
  return { microBatches, targets };
}

/** The student that the steps begin with. */
export async function openGoldenStudent(
  engine: Engine,
  tail: TailKind,
  float: FloatDtype,
  changes: Partial<StudentOptions> = {},
): Promise<Student> {
  const config = await readModelConfig(`${GOLDEN}qwen2-tiny`);
  const weights = await openSafetensors(`${GOLDEN}qwen2-tiny/model.safetensors`);
  const projection = await openSafetensors(`${TRAIN}projection.safetensors`);
  const objective: Objective = {
    labels: { kind: 'topk', k: K, tail, isWhole: false },
    divergence: { kind: 'forward-kl' },
    features: [
      {
        student: 'final',
        teacher: 'final',
        loss: 'mse',
        normalisation: 'none',
        teacherHidden: HIDDEN,
        hasProjection: true,
      },
    ],
  };
  const student = await createStudent(engine, {
    config,
    float,
    read: (name) => {
      const source = name === PROJECTION_NAME ? projection : weights;
      // A change may untie the two: they then begin equal.
      const stored = name === 'lm_head.weight' ? 'model.embed_tokens.weight' : name;
      return float === 'float64' ? source.read(stored, 'float64') : source.read(stored, 'float32');
    },
    objective,
    scalars: { temperature: 2, alpha: 0.7, hiddenWeight: 0.1 },
    adamw: { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1, clip: 1 },
    vocabSize: config.vocabSize,
    chunkPositions: 128,
    ...changes,
  });
  await Promise.all([weights, projection].map((source) => source.close()));
  return student;
}
