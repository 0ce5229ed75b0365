import { startsOf } from '@stillhouse/model-runner';
import { collectLabels, type FloatArray, type LabelArrays, type SoftLabels, sliceLabel } from '@stillhouse/objectives';
import type { FloatDtype, GraphBuilder } from '@stillhouse/onnx-graph';
import type { Call, DeviceTensor, Engine, Program } from '@stillhouse/runtime';
import type { HiddenScale, LabelledRow } from '@stillhouse/teacher-cache';
import { CALIBRATION_BINS, type LabelFigures, summariseQuality } from './quality-figures.ts';
import {
  coversVocabulary,
  crossEntropyGraph,
  logitsGraph,
  QUALITY_COLUMNS,
  type QualityValues,
  qualityGraph,
} from './quality-graphs.ts';

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

export interface ModeQuality {
  readonly name: string;
  readonly bytesPerToken: number | null;
  /** By temperature; those are left out at which the mode has no labels. */
  readonly at: Readonly<Record<string, LabelFigures>>;
}

export interface LabelQuality {
  readonly positions: number;
  /** Cross-entropy of the teacher with the next tokens, T = 1, in nats. */
  readonly teacherCe: number;
  readonly calibrationBins: number;
  readonly modes: readonly ModeQuality[];
}

export interface QualityOptions {
  readonly temperatures: readonly number[];
  /** Positions whose logits are in memory at a time. */
  readonly chunkPositions: number;
  readonly float?: FloatDtype;
  /** Told after each row: positions done so far. */
  readonly onProgress?: (done: number) => void;
}

interface OpenMode {
  readonly mode: LabelMode;
  /** One for each temperature at which the mode has labels. */
  readonly at: readonly {
    readonly temperature: number;
    readonly labels: SoftLabels;
    readonly program: Program;
    readonly values: QualityValues;
  }[];
}

/**
 * Holds labels against the teacher's true distribution, as a student sees it: see `LabelFigures`. Logits of both
 * models exist for one chunk of positions at a time and stay on the device.
 */
export async function measureLabelQuality(
  engine: Engine,
  sample: QualitySample,
  modes: readonly LabelMode[],
  options: QualityOptions,
): Promise<LabelQuality> {
  const { temperatures, chunkPositions, float = 'float32' } = options;
  const { rows, teacherStates, teacherHead, studentStates, studentHead } = sample;
  const [vocabSize, teacherWidth] = teacherHead.shape as [number, number];
  const studentWidth = studentHead.shape[1]!;
  const starts = startsOf(rows);
  const count = starts.at(-1)!;
  const programs = openPrograms(engine);
  const held: DeviceTensor[] = [];
  const hold = (tensor: DeviceTensor) => {
    held.push(tensor);
    return tensor;
  };
  try {
    const [ofTeacher, ofStudent, crossEntropy] = [
      await programs.compile(logitsGraph(teacherWidth, vocabSize, float)),
      await programs.compile(logitsGraph(studentWidth, vocabSize, float)),
      await programs.compile(crossEntropyGraph(vocabSize, float)),
    ];
    const opened: OpenMode[] = [];
    for (const mode of modes) {
      const at = temperatures.flatMap((temperature) => {
        const labels = mode.labelsAt(temperature);
        return labels === undefined ? [] : [{ temperature, labels }];
      });
      const ready = [];
      for (const { temperature, labels } of at) {
        const program = await programs.compile(qualityGraph(labels, vocabSize, float), JSON.stringify(labels));
        ready.push({ temperature, labels, program, values: emptyValues(count) });
      }
      opened.push({ mode, at: ready });
    }
    const scalars = new Map(
      temperatures.map((temperature) => {
        const tensor = hold(engine.allocate(float, []));
        engine.fill(tensor, temperature);
        return [temperature, tensor];
      }),
    );
    const nll = new Float64Array(count);
    for (const [row, { positions }] of rows.entries()) {
      if (positions.length === 0) continue;
      const labelled = await readLabels(opened, row, positions, vocabSize, float);
      for (let from = 0; from < positions.length; from += chunkPositions) {
        const to = Math.min(positions.length, from + chunkPositions);
        const size = to - from;
        const start = starts[row]! + from;
        const open: DeviceTensor[] = [];
        const make = (tensor: DeviceTensor) => {
          open.push(tensor);
          return tensor;
        };
        const upload = (states: FloatArray, width: number) =>
          make(engine.upload(states.slice(start * width, (start + size) * width), float, [size, width]));
        const [teacher, student] = [0, 1].map(() => make(engine.allocate(float, [size, vocabSize])));
        const targets = make(engine.upload(labelled.targets.slice(from, to), 'int64', [size]));
        const losses = make(engine.allocate(float, [size]));
        const calls: Call[] = [
          {
            kind: 'run',
            program: ofTeacher,
            inputs: { hidden: upload(teacherStates, teacherWidth), head: teacherHead },
            outputs: { logits: teacher! },
          },
          {
            kind: 'run',
            program: ofStudent,
            inputs: { hidden: upload(studentStates, studentWidth), head: studentHead },
            outputs: { logits: student! },
          },
          {
            kind: 'run',
            program: crossEntropy,
            inputs: { logits: teacher!, labels: targets },
            outputs: { nll: losses },
          },
        ];
        const results: { readonly figures: DeviceTensor; readonly values: QualityValues }[] = [];
        for (const { mode, at, arrays } of labelled.modes) {
          for (const [i, { temperature, program, labels, values }] of at.entries()) {
            const own = [...arrays[i]!.teacher].map(([name, array]) => {
              const part = sliceLabel(array, from, to);
              return [name, make(engine.upload(part.data, part.dtype, part.shape))] as const;
            });
            const figures = make(engine.allocate(float, [size, QUALITY_COLUMNS.length]));
            const inputs: Readonly<Record<string, DeviceTensor>> = {
              ...{ student: student!, teacher: teacher!, labels: targets, temperature: scalars.get(temperature)! },
              ...(labels.kind === 'full' ? { 'teacher.head': mode.head ?? teacherHead } : {}),
              ...Object.fromEntries(own),
            };
            // A graph has no input that nothing in it reads.
            const read = Object.fromEntries(program.inputNames.map((name) => [name, inputs[name]!]));
            calls.push({ kind: 'run', program, inputs: read, outputs: { figures } });
            results.push({ figures, values });
          }
        }
        try {
          await engine.run(calls);
          const [losing, ...figures] = await engine.downloadMany([losses, ...results.map((one) => one.figures)]);
          nll.set(losing as FloatArray, start);
          results.forEach(({ values }, i) => {
            keepFigures(figures[i] as FloatArray, values, start);
          });
        } finally {
          for (const tensor of open) engine.free(tensor);
        }
      }
      options.onProgress?.(starts[row]! + positions.length);
    }
    return {
      positions: count,
      teacherCe: nll.reduce((sum, one) => sum + one, 0) / count,
      calibrationBins: CALIBRATION_BINS,
      modes: opened.map(({ mode: { name, bytesPerToken }, at }) => ({
        name,
        bytesPerToken,
        at: Object.fromEntries(
          at.map(({ temperature, labels, values }) => [
            String(temperature),
            summariseQuality(values, { temperature, coversVocabulary: coversVocabulary(labels) }),
          ]),
        ),
      })),
    };
  } finally {
    for (const tensor of held) engine.free(tensor);
    await programs.release();
  }
}

/** The labels of a row in all modes, cut to the positions of the sample. */
async function readLabels(
  opened: readonly OpenMode[],
  row: number,
  positions: Int32Array,
  vocabSize: number,
  float: FloatDtype,
) {
  let targets: BigInt64Array | undefined;
  const modes: (OpenMode & { readonly arrays: readonly LabelArrays[] })[] = [];
  for (const one of opened) {
    const { mode, at } = one;
    const labelled = await mode.readRow(row);
    const arrays = at.map(({ temperature, labels }) =>
      collectLabels([labelled], {
        objective: { labels, divergence: { kind: 'forward-kl' } },
        temperature,
        temperatures: mode.temperatures ?? [],
        vocabSize,
        float,
        ...(mode.sampledTemperature === undefined ? {} : { sampledTemperature: mode.sampledTemperature }),
        ...(mode.hiddenScale === undefined ? {} : { hiddenScale: mode.hiddenScale }),
      }),
    );
    for (const { positions: found } of arrays) {
      if (positions.every((position, i) => position === found[i])) continue;
      throw new Error(`row ${labelled.row.id}: the labels of ${mode.name} are not at the positions of the sample`);
    }
    targets ??= arrays[0]?.labels;
    modes.push({ ...one, arrays });
  }
  if (targets === undefined) throw new Error('no mode has labels at any of the temperatures');
  return { targets, modes };
}

const emptyValues = (count: number): QualityValues =>
  Object.fromEntries(QUALITY_COLUMNS.map((name) => [name, new Float64Array(count)])) as unknown as QualityValues;

/** Writes [size, columns] from a chunk behind `start`. */
function keepFigures(figures: FloatArray, values: QualityValues, start: number): void {
  const columns = QUALITY_COLUMNS.length;
  figures.forEach((value: number, i: number) => {
    values[QUALITY_COLUMNS[i % columns]!][start + Math.floor(i / columns)] = value;
  });
}

/** Compiles programs, equal ones once, and releases them all. */
function openPrograms(engine: Engine) {
  const all = new Map<string, Promise<Program>>();
  return {
    compile: (graph: GraphBuilder, key = `graph ${all.size}`): Promise<Program> => {
      const known = all.get(key);
      if (known !== undefined) return known;
      const program = engine.compile(graph);
      all.set(key, program);
      return program;
    },
    release: async () => {
      for (const program of all.values()) await (await program).release();
    },
  };
}
