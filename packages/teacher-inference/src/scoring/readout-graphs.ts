import { GraphBuilder, type Value } from '@stillhouse/onnx-graph';
import { GROUP_CHANNELS, type HiddenDtype, LARGEST_CODE } from '@stillhouse/teacher-cache';

/** Below this a scale would be lost to underflow; the smallest normal float32. */
const LEAST_SCALE = 2 ** -126;

/** The least scale of a group, as `quantiseHiddenGroups` has it. */
const LEAST_GROUP_SCALE = 2 ** -14;

/**
 * Hidden states as the cache stores them; int8 and int8-groups are bit for bit what `quantiseHidden` and
 * `quantiseHiddenGroups` of the cache package give, but for the sign of zero.
 * Inputs: x [N, H]; for int8 channelRms [H]; for coded mean [H] and encode [H, R]. Outputs: values [N, H], for coded
 * int32 [N, R]; for int8 tokenScale [N]; for int8-groups groupScale float16 [N, H / 64]; and check [N], which is 0
 * where all states are finite numbers and NaN elsewhere.
 */
export function hiddenGraph(hiddenSize: number, dtype: HiddenDtype): GraphBuilder {
  const g = new GraphBuilder(`hidden_${dtype}`, 'float32');
  const x = g.floatInput('x', ['N', hiddenSize]);
  g.output('check', g.reduceSum(g.scale(x, 0), [1]));
  const roundTo = (levels: Value, largest: number) =>
    g.max(g.min(g.round(levels), g.scalar(largest)), g.scalar(-largest));
  if (dtype === 'float16' || dtype === 'float32') {
    g.output('values', g.cast(x, dtype));
    return g;
  }
  if (dtype === 'coded') {
    const centred = g.sub(x, g.floatInput('mean', [hiddenSize]));
    const coordinates = g.gemm(centred, g.floatInput('encode', [hiddenSize, 'R']));
    g.output('values', g.cast(roundTo(coordinates, LARGEST_CODE), 'int32'));
    return g;
  }
  if (dtype === 'int8-groups') {
    const groups = hiddenSize / GROUP_CHANNELS;
    const grouped = g.reshape(x, ['N', groups, GROUP_CHANNELS]);
    const wanted = g.max(g.div(g.reduceMax(g.abs(grouped), [2], true), g.scalar(127)), g.scalar(LEAST_GROUP_SCALE));
    const scale = g.cast(wanted, 'float16');
    const levels = roundTo(g.div(grouped, g.cast(scale, 'float32')), 127);
    g.output('values', g.cast(g.reshape(levels, ['N', hiddenSize]), 'int8'));
    g.output('groupScale', g.reshape(scale, ['N', groups]));
    return g;
  }
  const normalised = g.div(x, g.floatInput('channelRms', [hiddenSize]));
  const largest = g.reduceMax(g.abs(normalised), [1], true);
  const scale = g.max(g.div(largest, g.scalar(127)), g.scalar(LEAST_SCALE));
  g.output('values', g.cast(roundTo(g.div(normalised, scale), 127), 'int8'));
  g.output('tokenScale', g.reshape(scale, ['N']));
  return g;
}
