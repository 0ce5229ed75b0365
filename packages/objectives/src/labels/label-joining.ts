import type { FloatDtype } from '@stillhouse/onnx-graph';
import type { LabelArray, LabelArrays } from './label-arrays.ts';
import { ABSENT_LOGPROB } from './label-distributions.ts';
import { makeFloats } from './label-gathering.ts';

/** Labels of some rows, gathered by themselves. */
export interface LabelPart {
  readonly labels: LabelArrays;
  /** How many rows they were gathered from, those without a label position included. */
  readonly rows: number;
}

/**
 * The labels of several groups of rows under one objective as if they had been gathered together: what differs between
 * caches (scales, grids, numbers of draws) was dealt with in each part.
 * @param parts at least one
 */
export function joinLabels(parts: readonly LabelPart[]): LabelArrays {
  const [first] = parts as [LabelPart];
  if (parts.length === 1) return first.labels;
  const count = parts.reduce((sum, { labels }) => sum + labels.count, 0);
  const firstRows = parts.map((_, i) => parts.slice(0, i).reduce((sum, { rows }) => sum + rows, 0));
  const concat = <Data extends Int32Array | BigInt64Array | Float64Array>(
    out: Data,
    of: (labels: LabelArrays, part: number) => Data,
  ): Data => {
    let at = 0;
    for (const [i, { labels }] of parts.entries()) {
      out.set(of(labels, i) as never, at);
      at += labels.count;
    }
    return out;
  };
  const join = <Name>(of: (labels: LabelArrays) => ReadonlyMap<Name, LabelArray>): ReadonlyMap<Name, LabelArray> =>
    new Map(
      [...of(first.labels).keys()].map((name) => [name, joinArrays(parts, (labels) => of(labels).get(name)!, count)]),
    );
  return {
    count,
    rows: concat(new Int32Array(count), ({ rows }, part) => rows.map((row) => row + firstRows[part]!)),
    positions: concat(new Int32Array(count), ({ positions }) => positions),
    labels: concat(new BigInt64Array(count), ({ labels }) => labels),
    teacher: join(({ teacher }) => teacher),
    ...(first.labels.features === undefined ? {} : { features: join(({ features }) => features!) }),
    ...(first.labels.weights === undefined
      ? {}
      : { weights: concat(new Float64Array(count), ({ weights }) => weights!) }),
  };
}

/** One array of all parts; entries that a part has fewer of are absent, as those of a position with fewer are. */
function joinArrays(parts: readonly LabelPart[], of: (labels: LabelArrays) => LabelArray, count: number): LabelArray {
  const arrays = parts.map(({ labels }) => of(labels));
  const { dtype } = arrays[0]!;
  const widths = arrays.map(({ width }) => width ?? 1);
  const width = Math.max(...widths);
  const data =
    dtype === 'int64'
      ? new BigInt64Array(count * width)
      : makeFloats(dtype as FloatDtype, count * width).fill(ABSENT_LOGPROB);
  let position = 0;
  for (const [part, array] of arrays.entries()) {
    const own = widths[part]!;
    for (let n = 0; n < parts[part]!.labels.count; n++, position++) {
      if (dtype === 'int64')
        (data as BigInt64Array).fill(array.data[n * own] as bigint, position * width, (position + 1) * width);
      data.set(array.data.subarray(n * own, (n + 1) * own) as never, position * width);
    }
  }
  return { dtype, data, width: arrays[0]!.width === undefined ? undefined : width };
}
