import type { FloatDtype, GraphBuilder, Value } from '@stillhouse/onnx-graph';
import type { DeviceTensor, Engine } from '@stillhouse/runtime';
import { countElements, type TensorDtype } from '@stillhouse/tensor-types';

/**
 * How Adam's two moments are held between steps. A step decodes them, updates in the graph's float type, and encodes
 * again: the update itself uses the new moments before they are rounded.
 * - `float32`: as they are (the graph's own type).
 * - `bfloat16`: to nearest, ties to even.
 * - `int8`: blocks of 256 numbers with one float32 scale each, their largest magnitude s (blockwise as Dettmers et al.
 *   2022, arXiv 2110.02861, section 2.1). Codes are powers instead of their dynamic tree, as these are a few operators
 *   instead of a search and came out nearer (docs/log.md): the first moment is s · c|c| / 127² with c in -127..127, the
 *   second s · (c / 255)⁴ with c in 1..255. The second has no code for zero: one that rounded to zero beside a first
 *   moment that did not would make a step without bound.
 *
 * All round to nearest and draw nothing, so that equal runs, and resumed ones, are equal bit for bit.
 */
export type OptimiserStateFormat = (typeof OPTIMISER_STATE_FORMATS)[number];

export const OPTIMISER_STATE_FORMATS = ['float32', 'bfloat16', 'int8'] as const;

/** Numbers that share a scale. */
export const BLOCK_ELEMENTS = 256;

/**
 * Tensors smaller than this keep plain moments whatever the format: norms and biases are few, and each counts (as
 * bitsandbytes).
 */
export const SMALLEST_CODED = 4096;

export type Moment = 'first' | 'second';

/** The format that a parameter of so many elements has. */
export function formatOf(format: OptimiserStateFormat, elements: number): OptimiserStateFormat {
  return elements < SMALLEST_CODED ? 'float32' : format;
}

const dtypeOf = (format: OptimiserStateFormat, moment: Moment, float: FloatDtype): TensorDtype =>
  format === 'float32' ? float : format === 'bfloat16' ? 'uint16' : moment === 'first' ? 'int8' : 'uint8';

const hasScale = (format: OptimiserStateFormat) => format === 'int8';

/** A moment of one parameter on the device. */
export interface MomentTensors {
  /** Numbers or codes, in the shape of the parameter. */
  readonly values: DeviceTensor;
  /** [blocks], only for `int8`. */
  readonly scale?: DeviceTensor;
}

interface MomentSpec {
  readonly format: OptimiserStateFormat;
  readonly moment: Moment;
  readonly float: FloatDtype;
  /** Of the parameter. */
  readonly shape: readonly number[];
}

/** A moment of zeros. */
export function allocateMoment(engine: Engine, { format, moment, float, shape }: MomentSpec): MomentTensors {
  const values = engine.allocate(dtypeOf(format, moment, float), shape);
  if (!hasScale(format)) return { values };
  const elements = countElements(shape);
  return { values, scale: engine.allocate(float, [Math.ceil(elements / BLOCK_ELEMENTS)]) };
}

/** Bytes that both moments of a parameter take. */
export function measureMoments(format: OptimiserStateFormat, elements: number): number {
  const used = formatOf(format, elements);
  if (used === 'float32') return 8 * elements;
  if (used === 'bfloat16') return 4 * elements;
  return 2 * elements + 8 * Math.ceil(elements / BLOCK_ELEMENTS);
}

/** A moment in a graph over [blocks, block size] elements: its inputs, read, and outputs that may alias them. */
export interface MomentPort {
  readonly value: Value;
  /** Makes the outputs `NAME.next` and, with a scale, `NAME.scale.next`. */
  write(next: Value): void;
}

const LARGEST_CODE = { first: 127, second: 255 } as const;

/** Keeps a block of zeros from a division by zero; far below any square of a float32 gradient that matters. */
const SMALLEST_SCALE = 1e-35;

/** Inputs NAME [blocks, size] and, with a scale, NAME.scale [blocks, 1]. */
export function emitMoment(g: GraphBuilder, format: OptimiserStateFormat, moment: Moment, name: string): MomentPort {
  const stored = g.input(name, dtypeOf(format, moment, g.float), ['blocks', 'size']);
  if (format === 'float32') return { value: stored, write: (next) => void g.output(`${name}.next`, next) };
  if (format === 'bfloat16') {
    return {
      value: g.cast(g.bitCast(stored, 'bfloat16'), g.float),
      write: (next) => void g.output(`${name}.next`, g.bitCast(g.cast(next, 'bfloat16'), 'uint16')),
    };
  }
  const scale = g.floatInput(`${name}.scale`, ['blocks', 1]);
  const largest = LARGEST_CODE[moment];
  const code = g.cast(stored, g.float);
  const square = moment === 'first' ? g.mul(code, g.abs(code)) : g.mul(code, code);
  const value =
    moment === 'first'
      ? g.mul(square, g.scale(scale, largest ** -2))
      : g.mul(g.mul(square, square), g.scale(scale, largest ** -4));
  return {
    value,
    write(next) {
      const nextScale = g.max(g.reduceMax(g.abs(next), [1], true), g.scalar(SMALLEST_SCALE));
      const share = g.mul(g.abs(next), g.reciprocal(nextScale));
      const root = moment === 'first' ? g.sqrt(share) : g.sqrt(g.sqrt(share));
      const magnitude = g.round(g.scale(root, largest));
      const signed =
        moment === 'first'
          ? g.where(g.less(next, g.scalar(0)), g.neg(magnitude), magnitude)
          : g.max(magnitude, g.scalar(1));
      g.output(`${name}.next`, g.cast(signed, moment === 'first' ? 'int8' : 'uint8'));
      g.output(`${name}.scale.next`, nextScale);
    },
  };
}
