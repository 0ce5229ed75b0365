import {
  compileForwardPrograms,
  type DecoderOnDevice,
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
  sliceLabel,
  uploadTeacherHead,
} from '@stillhouse/objectives';
import type { Call, DeviceTensor, Engine, TensorData } from '@stillhouse/runtime';
import type { LabelledRow, TeacherCache } from '@stillhouse/teacher-cache';
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

/** Runs batches of a cache's rows through a model and the readout of `kdGraph`. */
export async function createKdRunner(
  engine: Engine,
  model: DecoderOnDevice,
  cache: TeacherCache,
  { labels, temperatures, chunkPositions }: KdRunnerOptions,
): Promise<KdRunner> {
  const { config, float } = model;
  const { vocabSize, refinements } = labels;
  const isFull = labels.soft.kind === 'full';
  const hiddenScale = isFull ? await cache.hiddenScale('final') : undefined;
  const soft = isFull ? describeFullLabels(cache.description, hiddenScale) : labels.soft;
  const { topk } = cache.description.labels;
  const forward = await compileForwardPrograms(engine, config, float, model.adapter);
  const program = await engine.compile(kdGraph({ ...labels, soft }, config, temperatures, float));
  const teacherHead = isFull ? await uploadTeacherHead(engine, cache, hiddenScale, vocabSize) : undefined;
  const cut = (matrix: DeviceTensor) => engine.view(matrix, { offset: 0, shape: [vocabSize, matrix.shape[1]!] });
  const head = cut(model.head);
  const fixed = {
    norm: model.norm,
    head,
    ...(teacherHead === undefined ? {} : { 'teacher.head': teacherHead }),
  };

  /** Label arrays of the rows under the names of `kdGraph`. */
  function collect(labelled: readonly LabelledRow[]): LabelArrays {
    const optionsAt = (temperature: number) => ({
      temperature,
      temperatures: topk?.temperatures ?? [],
      vocabSize,
      float,
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

  async function run(labelled: readonly LabelledRow[]): Promise<PositionFigures> {
    const arrays = collect(labelled);
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
      const wanted = new Map<string, DeviceTensor>([
        ['nll', hold(engine.allocate(float, [count]))],
        ['model_top', hold(engine.allocate('int64', [count]))],
        ...temperatures.map((_, i) => [perTemperature.kl(i), hold(engine.allocate(float, [count]))] as const),
        ...(program.outputNames.includes('teacher_top')
          ? [['teacher_top', hold(engine.allocate('int64', [count]))] as const]
          : []),
      ]);
      const flat = BigInt64Array.from(arrays.positions, (position, n) =>
        BigInt(flatIndex(batch, batch.placements[rows[n]!]!, position)),
      );
      const chunks: Call[] = [];
      for (let from = 0; from < count; from += chunkPositions) {
        const to = Math.min(count, from + chunkPositions);
        const indices = hold(engine.upload(flat.slice(from, to), 'int64', [to - from]));
        const states = hold(engine.allocate(float, [to - from, config.hiddenSize]));
        const teacher = [...arrays.teacher].map(([name, array]) => {
          const part = sliceLabel(array, from, to);
          return [name, hold(engine.upload(part.data, part.dtype, part.shape))] as const;
        });
        chunks.push(
          { kind: 'run', program: forward.gatherRows, inputs: { x: pass.x, indices }, outputs: { rows: states } },
          {
            kind: 'run',
            program,
            inputs: {
              x: states,
              labels: hold(engine.upload(arrays.labels.slice(from, to), 'int64', [to - from, 1])),
              ...fixed,
              ...Object.fromEntries(teacher),
            },
            outputs: Object.fromEntries(
              [...wanted].map(([name, whole]) => [name, engine.view(whole, { offset: from, shape: [to - from] })]),
            ),
          },
        );
      }
      await engine.run([...pass.embed, ...pass.layers, ...chunks]);
      const names = [...wanted.keys()];
      const values = await engine.downloadMany([...wanted.values()]);
      const of = (name: string) => values[names.indexOf(name)]!;
      const teacherTop = labels.hasTopK ? bestCachedIds(labelled, arrays, vocabSize) : of('teacher_top');
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

  return {
    run,
    close() {
      if (teacherHead !== undefined) engine.free(teacherHead);
      engine.free(head);
      program.release();
      releaseForwardPrograms(forward);
    },
  };
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
