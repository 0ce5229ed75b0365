import { openCacheAt } from '@stillhouse/cache-remote';
import { readModelConfig } from '@stillhouse/checkpoint';
import type { DecoderOnDevice } from '@stillhouse/model-runner';
import { checkModelTokenizer, describeOpenLabels } from '@stillhouse/objectives';
import type { Engine } from '@stillhouse/runtime';
import type { SharedCaches } from '../evaluate.ts';
import { evaluateKd, type KdFigures } from './kd-evaluation.ts';
import { resolveKdLabels } from './kd-labels.ts';
import { selectKdRows } from './kd-rows.ts';

export interface HeldOutOptions {
  /** Folder or address of the cache. */
  readonly cache: string;
  /** Rows of this split; all if not given. */
  readonly split: string | undefined;
  /** Only the first so many rows. */
  readonly limit: number | undefined;
  /** Folder of the model as it comes: its config and tokenizer. */
  readonly model: string;
  readonly temperatures: readonly number[];
  readonly batchSize: number;
  readonly chunkPositions: number;
}

/** Rows of a cache that a model is held against again and again, while it changes. */
export interface HeldOutRows {
  readonly rows: number;
  /** Holds nothing on the device between two calls. */
  evaluate(engine: Engine, model: DecoderOnDevice): Promise<KdFigures>;
  close(): Promise<void>;
}

/**
 * Opens held-out rows; everything that could be wrong with them is checked here.
 * @throws StillhouseError of the cache, and those of `eval --task kd`
 */
export async function openHeldOut(
  options: HeldOutOptions,
  { openCache = openCacheAt }: SharedCaches = {},
): Promise<HeldOutRows> {
  const { temperatures, batchSize, chunkPositions, split, limit } = options;
  const cache = await openCache(options.cache);
  try {
    const config = await readModelConfig(options.model);
    const labels = resolveKdLabels(describeOpenLabels(cache), config, { temperatures, where: cache.folder });
    await checkModelTokenizer(cache, options.model);
    const rows = await selectKdRows(cache, config, labels.vocabSize, { split, limit });
    return {
      rows: rows.length,
      evaluate: (engine, model) =>
        evaluateKd(engine, model, cache, { labels, temperatures, rows, batchSize, chunkPositions }),
      close: () => cache.close(),
    };
  } catch (error) {
    await cache.close();
    throw error;
  }
}
