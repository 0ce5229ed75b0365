import type { ModelConfig } from '@stillhouse/checkpoint';
import { StillhouseError } from '@stillhouse/errors';
import type { DeviceTensor, Engine, Program } from '@stillhouse/runtime';
import {
  type CacheDescription,
  describeHiddenLayer,
  GROUP_CHANNELS,
  type HiddenCodebook,
  type HiddenDtype,
  type HiddenLabels,
  type HiddenLayer,
  type HiddenScale,
} from '@stillhouse/teacher-cache';
import type { TensorData, TensorDtype } from '@stillhouse/tensor-types';
import { createDistributionReadout, type DistributionReadout } from './distribution-readout.ts';
import { findRange, type LabelRange, requireFinite } from './label-range.ts';
import { hiddenGraph } from './readout-graphs.ts';

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
  /** Top-k and sampled labels; undefined where a cache has neither. */
  readonly readDistributions: DistributionReadout | undefined;
}

/** Most positions of a chunk, where they are narrow. */
const LONGEST_CHUNK = 1024;

/** Compiles the readouts that the labels ask for. */
export async function createLabelReadout(
  engine: Engine,
  config: ModelConfig,
  labels: CacheDescription['labels'],
): Promise<LabelReadout> {
  const { hiddenSize } = config;
  const program = labels.hidden && (await engine.compile(hiddenGraph(hiddenSize, labels.hidden.dtype)));
  const readDistributions = await createDistributionReadout(engine, config, labels);
  return {
    readDistributions,
    readHidden: async (layer, states, scale, ranges) => {
      const { dtype } = labels.hidden!;
      const stored = storedForm(dtype, hiddenSize, scale);
      const fixed = Object.fromEntries(
        Object.entries(stored.fixed).map(([name, [data, shape]]) => [name, engine.upload(data, 'float32', shape)]),
      );
      const values = await runInChunks(engine, states, {
        program: program!,
        fixed,
        outputs: { check: ['float32'], ...stored.outputs },
        chunk: LONGEST_CHUNK,
      });
      for (const tensor of Object.values(fixed)) engine.free(tensor);
      requireFinite(values.check as Float32Array, 1, `hidden states (${describeHiddenLayer(layer)})`, ranges);
      if (dtype === 'float16') requireFloat16(values.values as Uint16Array, hiddenSize, layer, ranges);
      if (dtype === 'int8-groups')
        requireFloat16(values.groupScale as Uint16Array, hiddenSize / GROUP_CHANNELS, layer, ranges);
      return ranges.map((range) => stored.cut(values, layer, range));
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

function requireFloat16(bits: Uint16Array, width: number, layer: HiddenLayer, ranges: readonly LabelRange[]): void {
  const bad = bits.findIndex((value) => (value & 0x7c00) === 0x7c00);
  if (bad < 0) return;
  const position = Math.floor(bad / width);
  const { rowId, start } = findRange(ranges, position);
  throw new StillhouseError({
    code: 'HIDDEN_STATE_OUT_OF_RANGE',
    where: `row ${rowId}, label position ${position - start}`,
    problem: `a hidden state (${describeHiddenLayer(layer)}) does not fit in float16`,
    expected: 'at most 65504 in size',
    remedy: 'Choose --hidden-dtype int8 or f32',
  });
}
