import { widenFloat16 } from '@stillhouse/float-formats';
import type { HiddenLayer } from './description.ts';
import type { HiddenLabels } from './labelled-row.ts';

/** Below this a scale would be lost to underflow; the smallest normal float32. */
const LEAST_SCALE = 2 ** -126;

/** Nearest whole number, ties to even, as ONNX Round and IEEE 754 have it. */
function roundHalfEven(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  if (rest !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}

/**
 * The root mean square of each channel over all given positions, never below 2^-126.
 * @param states [positions, width]
 * @returns [width]
 */
export function measureChannelRms(states: Float32Array, width: number): Float32Array {
  const sums = new Float64Array(width);
  for (let i = 0; i < states.length; i++) sums[i % width]! += states[i]! ** 2;
  const positions = Math.max(1, states.length / width);
  return Float32Array.from(sums, (sum) => Math.max(Math.sqrt(sum / positions), LEAST_SCALE));
}

/**
 * int8 hidden states, one RMS per channel times one scale per position. In float32:
 * x = h / channelRms, tokenScale = max(max |x| / 127, 2^-126), value = round(x / tokenScale) to nearest even, within ±127.
 * @param states [positions, width]
 * @param channelRms [width], each > 0
 */
export function quantiseHidden(layer: HiddenLayer, states: Float32Array, channelRms: Float32Array): HiddenLabels {
  const width = channelRms.length;
  const positions = states.length / width;
  const values = new Int8Array(states.length);
  const tokenScale = new Float32Array(positions);
  const scaled = new Float32Array(width);
  for (let position = 0; position < positions; position++) {
    const start = position * width;
    let largest = 0;
    for (let channel = 0; channel < width; channel++) {
      scaled[channel] = states[start + channel]! / channelRms[channel]!;
      largest = Math.max(largest, Math.abs(scaled[channel]!));
    }
    const scale = Math.fround(Math.max(Math.fround(largest / 127), LEAST_SCALE));
    tokenScale[position] = scale;
    for (let channel = 0; channel < width; channel++) {
      const level = roundHalfEven(Math.fround(scaled[channel]! / scale));
      values[start + channel] = Math.max(-127, Math.min(127, level));
    }
  }
  return { layer, dtype: 'int8', width, values, tokenScale };
}

/**
 * Hidden states as float32, whatever they are stored as.
 * @param channelRms [width], used by int8 only
 * @returns [positions, width]; for float32 the stored array itself
 */
export function dequantiseHidden(labels: HiddenLabels, channelRms?: Float32Array): Float32Array {
  const { values, width, tokenScale } = labels;
  if (values instanceof Float32Array) return values;
  if (values instanceof Uint16Array) return widenFloat16(values);
  if (tokenScale === undefined || channelRms?.length !== width) {
    throw new TypeError(`int8 hidden states need a scale per position and the RMS of ${width} channels`);
  }
  const states = new Float32Array(values.length);
  for (let position = 0; position < tokenScale.length; position++) {
    const scale = tokenScale[position]!;
    const start = position * width;
    for (let channel = 0; channel < width; channel++) {
      states[start + channel] = values[start + channel]! * Math.fround(scale * channelRms[channel]!);
    }
  }
  return states;
}
