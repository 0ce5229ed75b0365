import { StillhouseError } from '@stillhouse/errors';
import { decodeRow, type LabelDecoder, openSampledDecoder, openTopKDecoder } from '../codecs/arrow-decoding.ts';
import type { ArrowBatch } from '../codecs/arrow-file-reader.ts';
import { loadZstd } from '../codecs/zstd.ts';
import { contentGroup, type ShardContent } from '../format/description.ts';
import type { HiddenLayer } from '../format/hidden-layer.ts';
import {
  type HiddenLabels,
  type LabelledRow,
  type LabelSelection,
  labelPositions,
  type SampledLabels,
  type TopKLabels,
} from '../format/labelled-row.ts';
import type { CacheManifest, ListedShard } from '../format/manifest.ts';
import { findRange } from '../format/shard-layout.ts';
import type { HiddenScales } from './hidden-scales.ts';
import type { ShardFileReader } from './shard-files.ts';

interface RowSource {
  /** The cache in messages. */
  readonly where: string;
  readonly manifest: CacheManifest;
  readonly shardFiles: ShardFileReader;
  readonly scales: HiddenScales;
}

/** Reads a row that is there with labels that are there. @throws StillhouseError CACHE_FILE_UNREADABLE */
export type RowReader = (index: number, select: LabelSelection) => Promise<LabelledRow>;

const countPositions = ({ counts }: TopKLabels | SampledLabels) => counts.length;
const countStates = ({ values, width }: HiddenLabels) => values.length / width;

export async function openRowReader({ where, manifest, shardFiles, scales }: RowSource): Promise<RowReader> {
  const { description } = manifest;
  const { topk, sampled = null } = description.labels;
  const zstd = await loadZstd();
  const decodeTopK = topk === null ? undefined : openTopKDecoder(description, zstd);
  const decodeSampled = sampled === null ? undefined : openSampledDecoder(description, zstd);
  return async (index, select) => {
    const shard = findRange(manifest.shards, index)!;
    const layers = select.hidden ?? [];
    const contents: ShardContent[] = ['rows', ...layers];
    if (select.topk === true) contents.push('topk');
    if (select.sampled === true) contents.push('sampled');
    const batches = await readBatches(shardFiles, shard, contents, index - shard.firstRow);
    const decode = openDecoding(where, shard, batches, index - shard.firstRow);
    const row = decode('rows', decodeRow);
    const positions = labelPositions(row.lossMask, description.positions);
    /** The labels of a group, which must be of this row and its positions. */
    const decodeLabels = <T>(content: ShardContent, decoder: LabelDecoder<T>, countOf: (labels: T) => number): T => {
      const [id, labels] = decode(content, (batch, at) => decoder(batch, at, positions.length));
      const count = countOf(labels);
      if (id === row.id && count === positions.length) return labels;
      const group = contentGroup(content);
      throw new StillhouseError({
        code: 'CACHE_FILE_UNREADABLE',
        where: `${where}/${shard.files[group]!.path}`,
        problem: `${group} does not belong to the rows`,
        expected: `row ${row.id} with ${positions.length} positions`,
        got: `row ${id} with ${count}`,
        remedy: 'Run `stillhouse cache verify` on the cache',
      });
    };
    const states = new Map<HiddenLayer, HiddenLabels>();
    for (const layer of layers) states.set(layer, decodeLabels(layer, await scales.decoderOf(layer), countStates));
    return {
      row,
      positions,
      ...(select.topk === true ? { topk: decodeLabels('topk', decodeTopK!, countPositions) } : {}),
      ...(select.sampled === true ? { sampled: decodeLabels('sampled', decodeSampled!, countPositions) } : {}),
      ...(layers.length > 0 ? { hidden: states } : {}),
    };
  };
}

type BatchPlace = Awaited<ReturnType<ShardFileReader['readAt']>>;

/** All at once: while one is read from the disk another may be too. */
async function readBatches(
  shardFiles: ShardFileReader,
  shard: ListedShard,
  contents: readonly ShardContent[],
  row: number,
): Promise<ReadonlyMap<ShardContent, BatchPlace>> {
  const found = contents.map(async (content) => {
    const at = await shardFiles.readAt(shard.files[contentGroup(content)]!, content, row);
    return [content, at] as const;
  });
  return new Map(await Promise.all(found));
}

function openDecoding(
  where: string,
  shard: ListedShard,
  batches: ReadonlyMap<ShardContent, BatchPlace>,
  row: number,
): <T>(content: ShardContent, decoder: (batch: ArrowBatch, place: number) => T) => T {
  return (content, decoder) => {
    const at = batches.get(content)!;
    try {
      return decoder(at.batch, at.place);
    } catch (cause) {
      throw new StillhouseError({
        code: 'CACHE_FILE_UNREADABLE',
        where: `${where}/${shard.files[contentGroup(content)]!.path}`,
        problem: `row ${row} of the shard cannot be read (${(cause as Error).message})`,
        remedy: 'Run `stillhouse cache verify` on the cache',
        cause,
      });
    }
  };
}
