import {
  compileForwardPrograms,
  type DecoderOnDevice,
  type ForwardPrograms,
  flatIndex,
  openResidentPass,
  packSequences,
  releaseForwardPrograms,
} from '@stillhouse/model-runner';
import {
  collectLabels,
  collectRefinement,
  describeFullLabels,
  type LabelArray,
  type LabelArrays,
  type SoftLabels,
  sliceLabel,
  uploadTeacherHead,
} from '@stillhouse/objectives';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { Call, DeviceTensor, Engine, Program } from '@stillhouse/runtime';
import type { HiddenScale, LabelledRow, TeacherCache } from '@stillhouse/teacher-cache';
import type { TensorData } from '@stillhouse/tensor-types';
import { kdGraph, perTemperature } from './kd-graph.ts';
import type { KdLabels } from './kd-labels.ts';

export interface KdRunnerOptions {
  readonly labels: KdLabels;
  readonly temperatures: readonly number[];
  readonly chunkPositions: number;
}

/** The figures of N label positions. */
export interface PositionFigures {
  /** [N]: index of the row among those given. */
  readonly rows: Int32Array;
  /** [N] in nats. */
  readonly nll: TensorData;
  /** [N] for each temperature, in nats. */
  readonly kl: readonly TensorData[];
  /** [N]: whether model and teacher have the same most probable id. */
  readonly agrees: readonly boolean[];
}

export interface KdRunner {
  run(labelled: readonly LabelledRow[]): Promise<PositionFigures>;
  /** Returns what the runner holds on the device; the model stays. */
  close(): void;
}

interface Runner extends KdRunnerOptions {
  readonly engine: Engine;
  readonly model: DecoderOnDevice;
  readonly soft: SoftLabels;
  readonly hiddenScale: HiddenScale | undefined;
  /** The grid of log_z of the cache. */
  readonly grid: readonly number[];
  readonly forward: ForwardPrograms;
  /** Of `kdGraph`. */
  readonly program: Program;
  /** Its inputs that all chunks share. */
  readonly fixed: Readonly<Record<string, DeviceTensor>>;
}

/** Runs batches of a cache's rows through a model and the readout of `kdGraph`. */
export async function createKdRunner(
  engine: Engine,
  model: DecoderOnDevice,
  cache: TeacherCache,
  options: KdRunnerOptions,
): Promise<KdRunner> {
  const { config, float } = model;
  const { labels, temperatures } = options;
  const { vocabSize } = labels;
  const isFull = labels.soft.kind === 'full';
  const hiddenScale = isFull ? await cache.hiddenScale('final') : undefined;
  const soft = isFull ? describeFullLabels(cache.description, hiddenScale) : labels.soft;
  const forward = await compileForwardPrograms(engine, config, float, model.adapter);
  const program = await engine.compile(kdGraph({ ...labels, soft }, config, temperatures, float));
  const teacherHead = isFull ? await uploadTeacherHead(engine, cache, hiddenScale, vocabSize) : undefined;
  const head = engine.view(model.head, { offset: 0, shape: [vocabSize, model.head.shape[1]!] });
  const fixed = { norm: model.norm, head, ...(teacherHead === undefined ? {} : { 'teacher.head': teacherHead }) };
  const grid = cache.description.labels.topk?.temperatures ?? [];
  const runner: Runner = { ...options, engine, model, soft, hiddenScale, grid, forward, program, fixed };
  return {
    run: (labelled) => runBatch(runner, labelled),
    close() {
      if (teacherHead !== undefined) engine.free(teacherHead);
      engine.free(head);
      program.release();
      releaseForwardPrograms(forward);
    },
  };
}

/** Label arrays of the rows under the names of `kdGraph`. */
function collect(runner: Runner, labelled: readonly LabelledRow[]): LabelArrays {
  const { labels, temperatures, soft, hiddenScale, grid, model } = runner;
  const { vocabSize, refinements } = labels;
  const optionsAt = (temperature: number) => ({
    ...{ temperature, temperatures: grid, vocabSize, float: model.float },
    ...(hiddenScale === undefined ? {} : { hiddenScale }),
  });
  const at = (temperature: number) => {
    const objective = { labels: soft, divergence: { kind: 'forward-kl' } } as const;
    return collectLabels(labelled, { objective, ...optionsAt(temperature) });
  };
  const first = at(temperatures[0]!);
  if (soft.kind === 'full' && refinements === undefined) return first;
  const teacher = new Map<string, LabelArray>(first.teacher);
  for (const name of ['teacher.topk_logprobs', 'teacher.tail_logprob']) teacher.delete(name);
  temperatures.forEach((temperature, i) => {
    const refinement = refinements?.[i];
    const arrays =
      refinement !== undefined
        ? collectRefinement(labelled, refinement, optionsAt(temperature))
        : (i === 0 ? first : at(temperature)).teacher;
    teacher.set('teacher.topk_ids', arrays.get('teacher.topk_ids')!);
    teacher.set(perTemperature.logprobs(i), arrays.get('teacher.topk_logprobs')!);
    const tail = arrays.get('teacher.tail_logprob');
    if (tail !== undefined) teacher.set(perTemperature.tail(i), tail);
  });
  return { ...first, teacher };
}

async function runBatch(runner: Runner, labelled: readonly LabelledRow[]): Promise<PositionFigures> {
  const { engine, model, forward, temperatures, labels } = runner;
  const arrays = collect(runner, labelled);
  const { count, rows } = arrays;
  if (count === 0) return { rows, nll: new Float32Array(), kl: [], agrees: [] };
  const batch = packSequences(labelled.map(({ row }) => row.inputIds));
  const pass = await openResidentPass(engine, forward, model, batch);
  const held: DeviceTensor[] = [];
  const hold = (tensor: DeviceTensor) => {
    held.push(tensor);
    return tensor;
  };
  try {
    const wanted = allocateFigures(runner, count, hold);
    const places = BigInt64Array.from(arrays.positions, (position, n) =>
      BigInt(flatIndex(batch, batch.placements[rows[n]!]!, position)),
    );
    const chunks = chunkCalls(runner, { arrays, places, x: pass.x, wanted }, hold);
    await engine.run([...pass.embed, ...pass.layers, ...chunks]);
    const names = [...wanted.keys()];
    const values = await engine.downloadMany([...wanted.values()]);
    const of = (name: string) => values[names.indexOf(name)]!;
    const teacherTop = labels.hasTopK ? bestCachedIds(labelled, arrays, labels.vocabSize) : of('teacher_top');
    return {
      rows,
      nll: of('nll'),
      kl: temperatures.map((_, i) => of(perTemperature.kl(i))),
      agrees: Array.from(of('model_top') as ArrayLike<bigint>, (id, n) => Number(id) === Number(teacherTop[n])),
    };
  } finally {
    pass.close();
    for (const tensor of held) engine.free(tensor);
  }
}

type Hold = (tensor: DeviceTensor) => DeviceTensor;

/** The outputs of `kdGraph` for all positions of a batch, [count] each. */
function allocateFigures({ engine, model, temperatures, program }: Runner, count: number, hold: Hold) {
  const allocate = (dtype: FloatDtype | 'int64') => hold(engine.allocate(dtype, [count]));
  return new Map<string, DeviceTensor>([
    ['nll', allocate(model.float)],
    ['model_top', allocate('int64')],
    ...temperatures.map((_, i) => [perTemperature.kl(i), allocate(model.float)] as const),
    ...(program.outputNames.includes('teacher_top') ? [['teacher_top', allocate('int64')] as const] : []),
  ]);
}

interface BatchPositions {
  readonly arrays: LabelArrays;
  /** [count]: where each label position is in `x`. */
  readonly places: BigInt64Array<ArrayBuffer>;
  /** [tokens, hiddenSize] */
  readonly x: DeviceTensor;
  readonly wanted: ReadonlyMap<string, DeviceTensor>;
}

/** Takes the label positions through the readout, some at a time. */
function chunkCalls(runner: Runner, { arrays, places, x, wanted }: BatchPositions, hold: Hold): readonly Call[] {
  const { engine, model, forward, program, fixed, chunkPositions } = runner;
  const calls: Call[] = [];
  for (let from = 0; from < arrays.count; from += chunkPositions) {
    const to = Math.min(arrays.count, from + chunkPositions);
    const indices = hold(engine.upload(places.slice(from, to), 'int64', [to - from]));
    const states = hold(engine.allocate(model.float, [to - from, model.config.hiddenSize]));
    const labels = hold(engine.upload(arrays.labels.slice(from, to), 'int64', [to - from, 1]));
    const teacher = [...arrays.teacher].map(([name, array]) => {
      const part = sliceLabel(array, from, to);
      return [name, hold(engine.upload(part.data, part.dtype, part.shape))] as const;
    });
    const inputs = { x: states, labels, ...fixed, ...Object.fromEntries(teacher) };
    const outputs = Object.fromEntries(
      [...wanted].map(([name, whole]) => [name, engine.view(whole, { offset: from, shape: [to - from] })]),
    );
    calls.push(
      { kind: 'run', program: forward.gatherRows, inputs: { x, indices }, outputs: { rows: states } },
      { kind: 'run', program, inputs, outputs },
    );
  }
  return calls;
}

/** The teacher's most probable id that takes part, at each label position; -1 where the cache names none. */
function bestCachedIds(labelled: readonly LabelledRow[], { rows, positions }: LabelArrays, vocabSize: number) {
  const byRow = labelled.map((row) => {
    const { counts, ids } = row.topk!;
    const best = new Map<number, number>();
    let start = 0;
    row.positions.forEach((position, stored) => {
      const end = start + counts[stored]!;
      best.set(position, ids.subarray(start, end).find((id) => id < vocabSize) ?? -1);
      start = end;
    });
    return best;
  });
  return Int32Array.from(rows, (row, n) => byRow[row]!.get(positions[n]!)!);
}
