import type { SampledLabels } from '../format/labelled-row.ts';
import { openPlaneReader, openPlaneWriter } from './byte-planes.ts';
import { idBytes } from './topk-packing.ts';
import type { ZstdCodec } from './zstd.ts';

/**
 * The sampled labels of one row as bytes: byte planes (see `byte-planes.ts`) of the counts (2 bytes), the ids and the
 * draws (2 bytes).
 */
export function packSampled({ counts, ids, draws }: SampledLabels, vocabSize: number, zstd: ZstdCodec): Uint8Array {
  const planes = openPlaneWriter(zstd);
  planes.add(counts, 2);
  planes.add(ids, idBytes(vocabSize));
  planes.add(draws, 2);
  return planes.finish();
}

/**
 * What `packSampled` packed; ids are not held against the vocabulary here, nor draws against their sum.
 * @throws RangeError if the bytes are not such labels; nothing is allocated beyond positions x draws entries
 */
export function unpackSampled(
  packed: Uint8Array,
  shape: { readonly positions: number; readonly draws: number; readonly vocabSize: number },
  zstd: ZstdCodec,
): SampledLabels {
  const planes = openPlaneReader(packed, zstd);
  const counts = new Int32Array(planes.read(shape.positions, 2).buffer);
  let total = 0;
  for (const count of counts) {
    if (count < 1 || count > shape.draws)
      throw new RangeError(`a position has ${count} ids, allowed are 1 to ${shape.draws}`);
    total += count;
  }
  const ids = new Int32Array(planes.read(total, idBytes(shape.vocabSize)).buffer);
  const draws = Uint16Array.from(planes.read(total, 2));
  planes.finish();
  return { counts, ids, draws };
}
