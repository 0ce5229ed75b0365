import { type FloatArray, type LabelArrays, type SoftLabels, sliceLabel } from '@stillhouse/objectives';
import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { Call, DeviceTensor, Engine, Program } from '@stillhouse/runtime';
import type { LabelMode, QualitySample } from './label-mode.ts';
import { crossEntropyGraph, logitsGraph, QUALITY_COLUMNS, type QualityValues } from './quality-graphs.ts';
import type { QualityPrograms } from './quality-programs.ts';

export interface OpenMode {
  readonly mode: LabelMode;
  /** One for each temperature at which the mode has labels. */
  readonly at: readonly {
    readonly temperature: number;
    readonly labels: SoftLabels;
    readonly program: Program;
    readonly values: QualityValues;
  }[];
}

/** A mode with the labels of one row, for each of its temperatures. */
export type LabelledMode = OpenMode & { readonly arrays: readonly LabelArrays[] };

/** The labels of one row in all modes, at the positions of the sample. */
export interface LabelledModes {
  /** [positions]: the next tokens. */
  readonly targets: BigInt64Array;
  readonly modes: readonly LabelledMode[];
}

/** Positions [from, to) of a row, the first of which is number `start` of all rows. */
export interface PositionChunk {
  readonly from: number;
  readonly to: number;
  readonly start: number;
}

/** Takes both models' states of some positions to logits and holds all labels against them. */
export interface ChunkScorer {
  /** Writes the figures into the modes' values, and the teacher's cross-entropy into `nll`. */
  score(labelled: LabelledModes, chunk: PositionChunk, nll: Float64Array): Promise<void>;
  close(): void;
}

export interface ScorerOptions {
  readonly engine: Engine;
  readonly sample: QualitySample;
  readonly float: FloatDtype;
  readonly temperatures: readonly number[];
}

interface Scorer extends ScorerOptions {
  readonly programs: { readonly ofTeacher: Program; readonly ofStudent: Program; readonly crossEntropy: Program };
  /** Each temperature as a scalar on the device. */
  readonly scalars: ReadonlyMap<number, DeviceTensor>;
}

export async function openChunkScorer(programs: QualityPrograms, options: ScorerOptions): Promise<ChunkScorer> {
  const { engine, sample, float, temperatures } = options;
  const [vocabSize, teacherWidth] = sample.teacherHead.shape as [number, number];
  const compiled = {
    ofTeacher: await programs.compile(logitsGraph(teacherWidth, vocabSize, float)),
    ofStudent: await programs.compile(logitsGraph(sample.studentHead.shape[1]!, vocabSize, float)),
    crossEntropy: await programs.compile(crossEntropyGraph(vocabSize, float)),
  };
  const scalars = new Map(
    temperatures.map((temperature) => {
      const tensor = engine.allocate(float, []);
      engine.fill(tensor, temperature);
      return [temperature, tensor];
    }),
  );
  const scorer: Scorer = { ...options, programs: compiled, scalars };
  return {
    score: (labelled, chunk, nll) => scoreChunk(scorer, labelled, chunk, nll),
    close: () => {
      for (const scalar of scalars.values()) engine.free(scalar);
    },
  };
}

async function scoreChunk(
  scorer: Scorer,
  labelled: LabelledModes,
  chunk: PositionChunk,
  nll: Float64Array,
): Promise<void> {
  const { engine, float } = scorer;
  const size = chunk.to - chunk.from;
  const open: DeviceTensor[] = [];
  const hold = (tensor: DeviceTensor) => {
    open.push(tensor);
    return tensor;
  };
  try {
    const targets = hold(engine.upload(labelled.targets.slice(chunk.from, chunk.to), 'int64', [size]));
    const losses = hold(engine.allocate(float, [size]));
    const logits = logitsOf(scorer, chunk, hold);
    const crossEntropy = { program: scorer.programs.crossEntropy, inputs: { logits: logits.teacher, labels: targets } };
    const ofModes = modeCalls(scorer, labelled, chunk, { hold, inputs: { ...logits.tensors, labels: targets } });
    await engine.run([
      ...logits.calls,
      { kind: 'run', ...crossEntropy, outputs: { nll: losses } },
      ...ofModes.map(({ call }) => call),
    ]);
    const [losing, ...figures] = await engine.downloadMany([losses, ...ofModes.map((one) => one.figures)]);
    nll.set(losing as FloatArray, chunk.start);
    ofModes.forEach(({ values }, i) => {
      keepFigures(figures[i] as FloatArray, values, chunk.start);
    });
  } finally {
    for (const tensor of open) engine.free(tensor);
  }
}

type Hold = (tensor: DeviceTensor) => DeviceTensor;

/** Both models' logits [size, V] at the positions of a chunk. */
function logitsOf({ engine, sample, float, programs }: Scorer, { from, to, start }: PositionChunk, hold: Hold) {
  const size = to - from;
  const callOf = (program: Program, states: FloatArray, head: DeviceTensor): { call: Call; logits: DeviceTensor } => {
    const [vocabSize, width] = head.shape as [number, number];
    const logits = hold(engine.allocate(float, [size, vocabSize]));
    const part = states.slice(start * width, (start + size) * width);
    const hidden = hold(engine.upload(part, float, [size, width]));
    return { call: { kind: 'run', program, inputs: { hidden, head }, outputs: { logits } }, logits };
  };
  const teacher = callOf(programs.ofTeacher, sample.teacherStates, sample.teacherHead);
  const student = callOf(programs.ofStudent, sample.studentStates, sample.studentHead);
  return {
    calls: [teacher.call, student.call],
    teacher: teacher.logits,
    tensors: { teacher: teacher.logits, student: student.logits },
  };
}

interface ModeInputs {
  readonly hold: Hold;
  /** What every mode's program may read. */
  readonly inputs: Readonly<Record<string, DeviceTensor>>;
}

/** For each mode and temperature the call that gives its figures, [size, QUALITY_COLUMNS]. */
function modeCalls(
  { engine, float, sample, scalars }: Scorer,
  { modes }: LabelledModes,
  { from, to }: PositionChunk,
  { hold, inputs }: ModeInputs,
) {
  return modes.flatMap(({ mode, at, arrays }) =>
    at.map(({ temperature, program, labels, values }, i) => {
      const own = [...arrays[i]!.teacher].map(([name, array]) => {
        const part = sliceLabel(array, from, to);
        return [name, hold(engine.upload(part.data, part.dtype, part.shape))] as const;
      });
      const figures = hold(engine.allocate(float, [to - from, QUALITY_COLUMNS.length]));
      const known: Readonly<Record<string, DeviceTensor>> = {
        ...{ ...inputs, temperature: scalars.get(temperature)! },
        ...(labels.kind === 'full' ? { 'teacher.head': mode.head ?? sample.teacherHead } : {}),
        ...Object.fromEntries(own),
      };
      // A graph has no input that nothing in it reads.
      const read = Object.fromEntries(program.inputNames.map((name) => [name, known[name]!]));
      const call: Call = { kind: 'run', program, inputs: read, outputs: { figures } };
      return { call, figures, values };
    }),
  );
}

/** Writes [size, columns] from a chunk behind `start`. */
function keepFigures(figures: FloatArray, values: QualityValues, start: number): void {
  const columns = QUALITY_COLUMNS.length;
  figures.forEach((value: number, i: number) => {
    values[QUALITY_COLUMNS[i % columns]!][start + Math.floor(i / columns)] = value;
  });
}
