import { narrowToFloat16, widenFloat16 } from '@stillhouse/float-formats';
import { GROUP_CHANNELS } from '../format/description.ts';
import type { HiddenLayer } from '../format/hidden-layer.ts';
import type { HiddenLabels } from '../format/labelled-row.ts';
import { decodeStates } from './hidden-codebook.ts';
import { type HiddenScale, isCodebook } from './hidden-scale.ts';

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
 * x = h / channelRms, tokenScale = max(max |x| / 127, 2^-126), value = round(x / tokenScale) to nearest even, within
 * ±127.
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

/** The least positive scale that float16 holds with all its digits. */
const LEAST_GROUP_SCALE = 2 ** -14;

/**
 * int8 hidden states with one float16 scale for each group of 64 channels. In float32: scale = float16(max(max |h| /
 * 127, 2^-14)), value = round(h / scale) to nearest even, within ±127. Error at most 0.51 scales.
 * @param states [positions, width], below 127 · 65504 in size
 */
export function quantiseHiddenGroups(layer: HiddenLayer, states: Float32Array, width: number): HiddenLabels {
  const wanted = new Float32Array(states.length / GROUP_CHANNELS);
  for (let group = 0; group < wanted.length; group++) {
    let largest = 0;
    for (let i = group * GROUP_CHANNELS; i < (group + 1) * GROUP_CHANNELS; i++)
      largest = Math.max(largest, Math.abs(states[i]!));
    wanted[group] = Math.max(Math.fround(largest / 127), LEAST_GROUP_SCALE);
  }
  const groupScale = narrowToFloat16(wanted);
  const scales = widenFloat16(groupScale);
  const values = Int8Array.from(states, (state, i) => {
    const level = roundHalfEven(Math.fround(state / scales[Math.floor(i / GROUP_CHANNELS)]!));
    return Math.max(-127, Math.min(127, level));
  });
  return { layer, dtype: 'int8-groups', width, values, groupScale };
}

/**
 * Hidden states as float32, whatever they are stored as.
 * @param scale of the layer, for int8 and coded
 * @returns [positions, hiddenSize]; for float32 the stored array itself
 */
export function dequantiseHidden(labels: HiddenLabels, scale?: HiddenScale): Float32Array {
  const { values, width, tokenScale, groupScale } = labels;
  if (values instanceof Float32Array) return values;
  if (values instanceof Uint16Array) return widenFloat16(values);
  if (values instanceof Int16Array) {
    if (scale === undefined || !isCodebook(scale)) throw new TypeError('coded hidden states need their codebook');
    return decodeStates(values, scale);
  }
  if (groupScale !== undefined) {
    const scales = widenFloat16(groupScale);
    return Float32Array.from(values, (value, i) => value * scales[Math.floor(i / GROUP_CHANNELS)]!);
  }
  const channelRms = scale === undefined || isCodebook(scale) ? undefined : scale;
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
