/** Sizes are rounded up to this. */
const GRAIN_BYTES = 256;
const FIRST_REGION_BYTES = 2 ** 20;
/** A region that is larger than was asked for is at most so large. */
const LARGEST_SPARE_REGION_BYTES = 2 ** 30;
/** A free chunk that leaves more than this over is cut, as is one of twice the size or more. */
const MOST_UNUSED_BYTES = 2 ** 27;

interface Region {
  readonly chunks: Chunk[];
  /** How far from its beginning it was ever used. */
  touchedBytes: number;
}

interface Chunk {
  readonly region: Region;
  readonly offset: number;
  sizeBytes: number;
  isFree: boolean;
}

/** Memory that was taken from an arena. */
export type ArenaBlock = object;

/**
 * Where ONNX Runtime's memory arena (`BFCArena`: best fit, neighbours joined when they are free, regions of doubling
 * sizes that are never given back) would put what is asked for. What values of many sizes leave between each other is
 * memory too, and can be half of all.
 */
export interface ArenaModel {
  allocate(sizeBytes: number): ArenaBlock;
  free(block: ArenaBlock): void;
  /** Memory that was ever written to. */
  touchedBytes(): number;
}

export function openArenaModel(): ArenaModel {
  const regions: Region[] = [];
  let regionBytes = FIRST_REGION_BYTES;
  const findBestFit = (sizeBytes: number) => {
    let best: Chunk | undefined;
    for (const { chunks } of regions) {
      for (const chunk of chunks) {
        if (!chunk.isFree || chunk.sizeBytes < sizeBytes) continue;
        if (best === undefined || chunk.sizeBytes < best.sizeBytes) best = chunk;
      }
    }
    return best;
  };
  const addRegion = (sizeBytes: number): Chunk => {
    const fitted = regionBytes >= sizeBytes;
    while (regionBytes < sizeBytes) regionBytes *= 2;
    const region: Region = { chunks: [], touchedBytes: 0 };
    const chunk: Chunk = { region, offset: 0, sizeBytes: regionBytes, isFree: true };
    region.chunks.push(chunk);
    regions.push(region);
    if (fitted) regionBytes = Math.max(regionBytes, Math.min(2 * regionBytes, LARGEST_SPARE_REGION_BYTES));
    return chunk;
  };
  const joinWithNext = (chunk: Chunk) => {
    const { chunks } = chunk.region;
    const next = chunks[chunks.indexOf(chunk) + 1];
    if (next === undefined || !next.isFree || !chunk.isFree) return;
    chunk.sizeBytes += next.sizeBytes;
    chunks.splice(chunks.indexOf(next), 1);
  };
  return {
    allocate(asked) {
      const sizeBytes = GRAIN_BYTES * Math.max(1, Math.ceil(asked / GRAIN_BYTES));
      const chunk = findBestFit(sizeBytes) ?? addRegion(sizeBytes);
      const { region, offset } = chunk;
      const restBytes = chunk.sizeBytes - sizeBytes;
      if (restBytes >= sizeBytes || restBytes >= MOST_UNUSED_BYTES) {
        const rest = { region, offset: offset + sizeBytes, sizeBytes: restBytes, isFree: true };
        region.chunks.splice(region.chunks.indexOf(chunk) + 1, 0, rest);
        chunk.sizeBytes = sizeBytes;
      }
      chunk.isFree = false;
      region.touchedBytes = Math.max(region.touchedBytes, offset + sizeBytes);
      return chunk;
    },
    free(block) {
      const chunk = block as Chunk;
      chunk.isFree = true;
      joinWithNext(chunk);
      const { chunks } = chunk.region;
      const before = chunks[chunks.indexOf(chunk) - 1];
      if (before !== undefined) joinWithNext(before);
    },
    touchedBytes: () => regions.reduce((sum, region) => sum + region.touchedBytes, 0),
  };
}
