import type { ModelConfig } from '@stillhouse/checkpoint';
import { compileGraph } from '@stillhouse/decoder';
import { StillhouseError } from '@stillhouse/errors';
import type { DeviceTensor, Engine, Program, TensorData, TensorDtype } from '@stillhouse/runtime';
import {
  type CacheDescription,
  GROUP_CHANNELS,
  type HiddenCodebook,
  type HiddenDtype,
  type HiddenLabels,
  type HiddenLayer,
  type HiddenScale,
  type TopKLabels,
} from '@stillhouse/teacher-cache';
import { hiddenGraph, topKGraph } from './readout-graphs.ts';

/** The label positions of one row among those of its pass, [start, end). */
export interface LabelRange {
  readonly rowId: string;
  readonly start: number;
  readonly end: number;
}

/** Turns the states of label positions into labels; only what a cache stores leaves the device. */
export interface LabelReadout {
  /**
   * @param states [positions, hiddenSize], after the final norm for `final`
   * @param scale of the layer, for int8 and coded
   * @returns the labels of each range
   * @throws StillhouseError TEACHER_OUTPUT_NOT_FINITE, HIDDEN_STATE_OUT_OF_RANGE
   */
  readHidden(
    layer: HiddenLayer,
    states: DeviceTensor,
    scale: HiddenScale | undefined,
    ranges: readonly LabelRange[],
  ): Promise<readonly HiddenLabels[]>;
  /**
   * @param states [positions, hiddenSize] after the final norm
   * @param head [vocabSize, hiddenSize]
   * @throws StillhouseError TEACHER_OUTPUT_NOT_FINITE
   */
  readTopK(
    states: DeviceTensor,
    head: DeviceTensor,
    ranges: readonly LabelRange[],
    onChunk: (positions: number) => void,
  ): Promise<readonly TopKLabels[]>;
}

/** What the logits of one chunk of positions take; three or four arrays of this size are there at a time. */
const LOGITS_BYTES = 80 << 20;
/** Most positions of a chunk, where they are narrow. */
const LONGEST_CHUNK = 1024;

/** Compiles the readouts that the labels ask for. */
export async function createLabelReadout(
  engine: Engine,
  config: ModelConfig,
  labels: CacheDescription['labels'],
): Promise<LabelReadout> {
  const { hiddenSize, vocabSize } = config;
  const compiled = {
    hidden: labels.hidden && (await compileGraph(engine, hiddenGraph(hiddenSize, labels.hidden.dtype))),
    topK: labels.topk && (await compileGraph(engine, topKGraph(config, labels.topk))),
  };
  return {
    readHidden: async (layer, states, scale, ranges) => {
      const { dtype } = labels.hidden!;
      const stored = storedForm(dtype, hiddenSize, scale);
      const fixed = Object.fromEntries(
        Object.entries(stored.fixed).map(([name, [data, shape]]) => [name, engine.upload(data, 'float32', shape)]),
      );
      const values = await runInChunks(engine, states, {
        program: compiled.hidden!,
        fixed,
        outputs: { check: ['float32'], ...stored.outputs },
        chunk: LONGEST_CHUNK,
      });
      for (const tensor of Object.values(fixed)) engine.free(tensor);
      requireFinite(values.check as Float32Array, 1, `hidden states of ${describeLayer(layer)}`, ranges);
      if (dtype === 'float16') requireFloat16(values.values as Uint16Array, hiddenSize, layer, ranges);
      if (dtype === 'int8-groups')
        requireFloat16(values.groupScale as Uint16Array, hiddenSize / GROUP_CHANNELS, layer, ranges);
      return ranges.map((range) => stored.cut(values, layer, range));
    },
    readTopK: async (states, head, ranges, onChunk) => {
      const { k, temperatures } = labels.topk!;
      const values = await runInChunks(engine, states, {
        program: compiled.topK!,
        fixed: { head },
        outputs: { ids: ['int32', k], logprobs: ['float32', k], logZ: ['float32', temperatures.length] },
        chunk: Math.max(1, Math.min(LONGEST_CHUNK, Math.floor(LOGITS_BYTES / (4 * vocabSize)))),
        onChunk,
      });
      const logZ = values.logZ as Float32Array;
      // A logit that is not finite spoils the sum over all of them.
      requireFinite(logZ, temperatures.length, 'logits', ranges);
      return ranges.map(({ start, end }) => ({
        counts: new Int32Array(end - start).fill(k),
        ids: (values.ids as Int32Array).subarray(start * k, end * k),
        logprobs: (values.logprobs as Float32Array).subarray(start * k, end * k),
        logZ: logZ.subarray(start * temperatures.length, end * temperatures.length),
      }));
    },
  };
}

/** How states of a dtype come off the device: more inputs, the outputs, and a row's share of them. */
interface StoredForm {
  readonly fixed: Readonly<Record<string, readonly [Float32Array<ArrayBuffer>, readonly number[]]>>;
  readonly outputs: ChunkedRun['outputs'];
  cut(values: Readonly<Record<string, TensorData>>, layer: HiddenLayer, range: LabelRange): HiddenLabels;
}

function storedForm(dtype: HiddenDtype, hiddenSize: number, scale: HiddenScale | undefined): StoredForm {
  if (dtype === 'coded') {
    const { mean, encode, rank } = scale as HiddenCodebook;
    return {
      fixed: {
        mean: [Float32Array.from(mean), [hiddenSize]],
        encode: [Float32Array.from(encode), [hiddenSize, rank]],
      },
      outputs: { values: ['int32', rank] },
      cut: ({ values }, layer, { start, end }) => ({
        layer,
        dtype,
        width: rank,
        values: Int16Array.from((values as Int32Array).subarray(start * rank, end * rank)),
      }),
    };
  }
  const cutValues = (values: Readonly<Record<string, TensorData>>, { start, end }: LabelRange) =>
    (values.values as Int8Array).subarray(start * hiddenSize, end * hiddenSize);
  if (dtype === 'int8-groups') {
    const groups = hiddenSize / GROUP_CHANNELS;
    return {
      fixed: {},
      outputs: { values: ['int8', hiddenSize], groupScale: ['float16', groups] },
      cut: (values, layer, range) => ({
        layer,
        dtype,
        width: hiddenSize,
        values: cutValues(values, range),
        groupScale: (values.groupScale as Uint16Array).subarray(range.start * groups, range.end * groups),
      }),
    };
  }
  const isInt8 = dtype === 'int8';
  return {
    fixed: isInt8 ? { channelRms: [Float32Array.from(scale as Float32Array), [hiddenSize]] } : {},
    outputs: { values: [dtype, hiddenSize], ...(isInt8 ? { tokenScale: ['float32'] as const } : {}) },
    cut: (values, layer, range) => ({
      layer,
      dtype,
      width: hiddenSize,
      values: cutValues(values, range),
      ...(isInt8 ? { tokenScale: (values.tokenScale as Float32Array).subarray(range.start, range.end) } : {}),
    }),
  };
}

interface ChunkedRun {
  readonly program: Program;
  /** Inputs that are the same for all chunks. */
  readonly fixed: Readonly<Record<string, DeviceTensor>>;
  /** Dtype and, for matrices, columns of each output. */
  readonly outputs: Readonly<Record<string, readonly [dtype: TensorDtype, columns?: number]>>;
  /** Positions at a time. */
  readonly chunk: number;
  readonly onChunk?: (positions: number) => void;
}

/** Runs a program over the rows of `x`, some at a time, and brings back its outputs for all of them. */
async function runInChunks(
  engine: Engine,
  x: DeviceTensor,
  run: ChunkedRun,
): Promise<Readonly<Record<string, TensorData>>> {
  const [total] = x.shape as [number, number];
  const names = Object.keys(run.outputs);
  const wholes = names.map((name) => {
    const [dtype, columns] = run.outputs[name]!;
    return engine.allocate(dtype, columns === undefined ? [total] : [total, columns]);
  });
  try {
    for (let from = 0; from < total; from += run.chunk) {
      const size = Math.min(run.chunk, total - from);
      const cut = (tensor: DeviceTensor) => {
        const shape = [size, ...tensor.shape.slice(1)];
        return engine.view(tensor, { offset: from * (tensor.shape[1] ?? 1), shape });
      };
      const part = cut(x);
      const outputs = Object.fromEntries(names.map((name, i) => [name, cut(wholes[i]!)]));
      await engine.run([{ kind: 'run', program: run.program, inputs: { x: part, ...run.fixed }, outputs }]);
      engine.free(part);
      run.onChunk?.(size);
    }
    const values = await engine.downloadMany(wholes);
    return Object.fromEntries(names.map((name, i) => [name, values[i]!]));
  } finally {
    for (const whole of wholes) engine.free(whole);
  }
}

const describeLayer = (layer: HiddenLayer) => (layer === 'final' ? 'the final norm' : `layer ${layer}`);

function findRow(ranges: readonly LabelRange[], position: number): LabelRange {
  return ranges.find(({ start, end }) => position >= start && position < end)!;
}

function requireFinite(values: Float32Array, columns: number, what: string, ranges: readonly LabelRange[]): void {
  const bad = values.findIndex((value) => !Number.isFinite(value));
  if (bad < 0) return;
  const position = Math.floor(bad / columns);
  const { rowId, start } = findRow(ranges, position);
  throw new StillhouseError({
    code: 'TEACHER_OUTPUT_NOT_FINITE',
    where: `row ${rowId}, label position ${position - start}`,
    problem: `the teacher's ${what} are not finite numbers`,
    remedy: 'The weights overflow in float32 on this row: use another teacher or leave the row out',
  });
}

function requireFloat16(bits: Uint16Array, width: number, layer: HiddenLayer, ranges: readonly LabelRange[]): void {
  const bad = bits.findIndex((value) => (value & 0x7c00) === 0x7c00);
  if (bad < 0) return;
  const position = Math.floor(bad / width);
  const { rowId, start } = findRow(ranges, position);
  throw new StillhouseError({
    code: 'HIDDEN_STATE_OUT_OF_RANGE',
    where: `row ${rowId}, label position ${position - start}`,
    problem: `a hidden state of ${describeLayer(layer)} does not fit in float16`,
    expected: 'at most 65504 in size',
    remedy: 'Choose --hidden-dtype int8 or f32',
  });
}
