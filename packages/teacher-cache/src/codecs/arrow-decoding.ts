import type { Data } from 'apache-arrow';
import { METADATA_COLUMNS } from '../format/arrow-schemas.ts';
import { type CacheDescription, GROUP_CHANNELS, type HiddenDtype } from '../format/description.ts';
import type { HiddenLayer } from '../format/hidden-layer.ts';
import { largestTopKCount } from '../format/label-policy.ts';
import type { CachedRow, HiddenLabels, SampledLabels, TopKLabels } from '../format/labelled-row.ts';
import type { ArrowBatch } from './arrow-file-reader.ts';
import { type HiddenCodebook, openHiddenCoder } from './hidden-codebook.ts';
import type { HiddenScale } from './hidden-scale.ts';
import { unpackSampled } from './sampled-packing.ts';
import { unpackTopK } from './topk-packing.ts';
import type { ZstdCodec } from './zstd.ts';

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

/** A byte string of a column. */
export function bytesAt(column: Data, index: number): Uint8Array {
  const offsets = column.valueOffsets as Int32Array;
  const [start, end] = [offsets[index]!, offsets[index + 1]!];
  const bytes = column.values as Uint8Array;
  if (!(start >= 0 && start <= end && end <= bytes.length)) throw new RangeError('offsets are not ascending');
  return bytes.subarray(start, end);
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

/** Reads the labels of row `index` of a batch, its id first. @throws RangeError if they are damaged */
export type LabelDecoder<Labels> = (
  batch: ArrowBatch,
  index: number,
  positions: number,
) => readonly [id: string, labels: Labels];

export function openTopKDecoder({ labels, teacher }: CacheDescription, zstd: ZstdCodec): LabelDecoder<TopKLabels> {
  const policy = labels.topk!;
  const { vocabSize } = teacher!;
  const temperatures = policy.temperatures.length;
  if (policy.packing !== 'zstd') return (batch, index) => decodeTopK(batch, index, temperatures);
  const k = largestTopKCount(policy, vocabSize);
  return ({ columns }, index, positions) => {
    const shape = { positions, temperatures, k, vocabSize };
    const packed = bytesAt(columns[1]!, index);
    return [decodeText(columns[0]!, index)!, unpackTopK(packed, shape, policy.logprobDtype ?? 'float32', zstd)];
  };
}

export function openSampledDecoder(
  { labels, teacher }: CacheDescription,
  zstd: ZstdCodec,
): LabelDecoder<SampledLabels> {
  const { draws } = labels.sampled!;
  const { vocabSize } = teacher!;
  return ({ columns }, index, positions) => {
    const packed = bytesAt(columns[1]!, index);
    return [decodeText(columns[0]!, index)!, unpackSampled(packed, { positions, draws, vocabSize }, zstd)];
  };
}

function decodeTopK({ columns }: ArrowBatch, index: number, temperatures: number): readonly [string, TopKLabels] {
  const [rowIds, ids, logprobs, logZ] = columns as [Data, Data, Data, Data?];
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
  const counts = new Int32Array(end - start);
  const [logprobStart, logprobEnd, logprobOffsets] = entries(logprobs);
  for (let i = 0; i < counts.length; i++) {
    counts[i] = offsets[i + 1]! - offsets[i]!;
    if (logprobOffsets[i + 1]! - logprobOffsets[i]! !== counts[i])
      throw new RangeError('ids and logprobs differ in number');
  }
  const [zStart, zEnd] = logZ === undefined ? [0, 0] : range(logZ, index);
  const leaf = (column: Data) => column.children[0]!.children[0]!;
  return [
    decodeText(rowIds, index)!,
    {
      counts,
      ids: part<Int32Array>(leaf(ids), idStart, idEnd),
      logprobs: part<Float32Array>(leaf(logprobs), logprobStart, logprobEnd),
      logZ:
        logZ === undefined
          ? new Float32Array()
          : part<Float32Array>(leaf(logZ), zStart * temperatures, zEnd * temperatures),
    },
  ];
}

export type HiddenDecoder = LabelDecoder<HiddenLabels>;

export interface HiddenShape {
  readonly layer: HiddenLayer;
  readonly dtype: HiddenDtype;
  /** The teacher's hidden size. */
  readonly width: number;
}

/** @param scale of the layer; needed for `coded` */
export function openHiddenDecoder(shape: HiddenShape, scale: HiddenScale | undefined): HiddenDecoder {
  if (shape.dtype !== 'coded') return (batch, index) => decodeHidden(batch, index, shape);
  const { coder, rank } = scale as HiddenCodebook;
  const opened = openHiddenCoder(coder);
  return ({ columns }, index, positions) => {
    const [ids, coded] = columns as [Data, Data];
    const values = opened.decode(bytesAt(coded, index), positions);
    return [decodeText(ids, index)!, { layer: shape.layer, dtype: 'coded', width: rank, values }];
  };
}

function decodeHidden(
  { columns }: ArrowBatch,
  index: number,
  { layer, dtype, width }: HiddenShape,
): readonly [string, HiddenLabels] {
  const [rowIds, values, scale] = columns as [Data, Data, Data?];
  const [start, end] = range(values, index);
  const labels = {
    layer,
    dtype,
    width,
    values: part<Int8Array>(values.children[0]!.children[0]!, start * width, end * width),
  };
  if (scale === undefined) return [decodeText(rowIds, index)!, labels];
  const [from, to] = range(scale, index);
  if (dtype === 'int8-groups') {
    const groups = width / GROUP_CHANNELS;
    const groupScale = part<Uint16Array>(scale.children[0]!.children[0]!, from * groups, to * groups);
    return [decodeText(rowIds, index)!, { ...labels, groupScale }];
  }
  return [decodeText(rowIds, index)!, { ...labels, tokenScale: part<Float32Array>(scale.children[0]!, from, to) }];
}
