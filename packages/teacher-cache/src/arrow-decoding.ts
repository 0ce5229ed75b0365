import type { Data } from 'apache-arrow';
import type { ArrowBatch } from './arrow-file-reader.ts';
import { METADATA_COLUMNS } from './arrow-schemas.ts';
import type { HiddenDtype, HiddenLayer } from './description.ts';
import type { CachedRow, HiddenLabels, TopKLabels } from './labelled-row.ts';

const decoder = new TextDecoder('utf-8', { fatal: true });

/** [start, end) of list entry `index`, checked against what the child holds. */
function range(list: Data, index: number): readonly [number, number] {
  const offsets = list.valueOffsets as Int32Array;
  const start = offsets[index]!;
  const end = offsets[index + 1]!;
  if (!(start >= 0 && start <= end && end <= list.children[0]!.length))
    throw new RangeError('list offsets are not ascending');
  return [start, end];
}

function part<T>(data: Data, start: number, end: number): T {
  const values = data.values as Int32Array;
  if (end > values.length) throw new RangeError('a column is shorter than its lists');
  return values.subarray(start, end) as T;
}

export function decodeText(column: Data, index: number): string | undefined {
  if (!column.getValid(index)) return undefined;
  const offsets = column.valueOffsets as Int32Array;
  return decoder.decode((column.values as Uint8Array).subarray(offsets[index]!, offsets[index + 1]!));
}

/** Row `index` of a batch of `rows`; the arrays are views. */
export function decodeRow({ columns }: ArrowBatch, index: number): CachedRow {
  const [ids, inputIds, lossMask] = columns as [Data, Data, Data];
  const mask = part<Int8Array>(lossMask.children[0]!, ...range(lossMask, index));
  const metadata: Record<string, string> = {};
  for (const [i, name] of METADATA_COLUMNS.entries()) {
    const text = decodeText(columns[3 + i]!, index);
    if (text !== undefined) metadata[name] = text;
  }
  return {
    id: decodeText(ids, index)!,
    inputIds: part<Int32Array>(inputIds.children[0]!, ...range(inputIds, index)),
    lossMask: new Uint8Array(mask.buffer, mask.byteOffset, mask.length),
    ...metadata,
  };
}

/** Row `index` of a batch of `topk`, its id first. */
export function decodeTopK(
  { columns }: ArrowBatch,
  index: number,
  temperatures: number,
): readonly [string, TopKLabels] {
  const [rowIds, ids, logprobs, logZ] = columns as [Data, Data, Data, Data];
  const [start, end] = range(ids, index);
  const entries = (column: Data): readonly [number, number, Int32Array] => {
    const [from, to] = range(column, index);
    const inner = column.children[0]!;
    const offsets = (inner.valueOffsets as Int32Array).subarray(from, to + 1);
    if (from === to) return [0, 0, offsets];
    range(inner, from);
    range(inner, to - 1);
    return [offsets[0]!, offsets[to - from]!, offsets];
  };
  const [idStart, idEnd, offsets] = entries(ids);
  const counts = Int32Array.from({ length: end - start }, (_, i) => offsets[i + 1]! - offsets[i]!);
  const [logprobStart, logprobEnd, logprobOffsets] = entries(logprobs);
  for (let i = 0; i < counts.length; i++) {
    if (logprobOffsets[i + 1]! - logprobOffsets[i]! !== counts[i])
      throw new RangeError('ids and logprobs differ in number');
  }
  const [zStart, zEnd] = range(logZ, index);
  const leaf = (column: Data) => column.children[0]!.children[0]!;
  return [
    decodeText(rowIds, index)!,
    {
      counts,
      ids: part<Int32Array>(leaf(ids), idStart, idEnd),
      logprobs: part<Float32Array>(leaf(logprobs), logprobStart, logprobEnd),
      logZ: part<Float32Array>(leaf(logZ), zStart * temperatures, zEnd * temperatures),
    },
  ];
}

/** Row `index` of a batch of hidden states, its id first. */
export function decodeHidden(
  { columns }: ArrowBatch,
  index: number,
  { layer, dtype, width }: { readonly layer: HiddenLayer; readonly dtype: HiddenDtype; readonly width: number },
): readonly [string, HiddenLabels] {
  const [rowIds, values, tokenScale] = columns as [Data, Data, Data?];
  const [start, end] = range(values, index);
  const labels = {
    layer,
    dtype,
    width,
    values: part<Int8Array>(values.children[0]!.children[0]!, start * width, end * width),
  };
  if (tokenScale === undefined) return [decodeText(rowIds, index)!, labels];
  const scales = part<Float32Array>(tokenScale.children[0]!, ...range(tokenScale, index));
  return [decodeText(rowIds, index)!, { ...labels, tokenScale: scales }];
}
