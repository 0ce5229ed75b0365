import { type HiddenDecoder, openHiddenDecoder } from '../codecs/arrow-decoding.ts';
import type { HiddenScale } from '../codecs/hidden-scale.ts';
import { readScale } from '../codecs/scale-file.ts';
import type { HiddenLayer } from '../format/hidden-layer.ts';
import type { CacheManifest, ListedFile } from '../format/manifest.ts';
import type { CacheFiles } from './cache-files.ts';

/** What the states of each layer are decoded with, read when it is first asked for. */
export interface HiddenScales {
  /** Undefined for states that need none. */
  scaleOf(layer: HiddenLayer): Promise<HiddenScale | undefined>;
  decoderOf(layer: HiddenLayer): Promise<HiddenDecoder>;
}

export function openHiddenScales(files: CacheFiles, { description, scales }: CacheManifest): HiddenScales {
  const read = new Map<HiddenLayer, Promise<HiddenScale>>();
  const decoders = new Map<HiddenLayer, HiddenDecoder>();
  const readFile = async (file: ListedFile): Promise<HiddenScale> => {
    const local = await files.acquire(file);
    try {
      return await readScale(local.path, description);
    } finally {
      local.release();
    }
  };
  const scaleOf: HiddenScales['scaleOf'] = async (layer) => {
    const file = scales.find((one) => one.layer === layer);
    if (file === undefined) return undefined;
    const known = read.get(layer);
    if (known !== undefined) return known;
    const reading = readFile(file);
    read.set(layer, reading);
    reading.catch(() => read.delete(layer));
    return reading;
  };
  return {
    scaleOf,
    decoderOf: async (layer) => {
      const known = decoders.get(layer);
      if (known !== undefined) return known;
      const { dtype } = description.labels.hidden!;
      const shape = { layer, dtype, width: description.teacher!.hiddenSize! };
      const decoder = openHiddenDecoder(shape, dtype === 'coded' ? await scaleOf(layer) : undefined);
      decoders.set(layer, decoder);
      return decoder;
    },
  };
}
