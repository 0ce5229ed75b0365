import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { hashFile } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { isSameScale, isUsableScale } from '../check/writer-checks.ts';
import { writeArrowFile } from '../codecs/arrow-file-writer.ts';
import { type HiddenScale, scaledLayers, scalePath } from '../codecs/hidden-scale.ts';
import { encodeScale, readScale } from '../codecs/scale-file.ts';
import { hiddenGroup } from '../format/description.ts';
import type { HiddenLayer } from '../format/hidden-layer.ts';
import type { ListedFile } from '../format/manifest.ts';
import type { CacheWriter } from './cache-writer.ts';
import type { CommittedState } from './committed-state.ts';
import { publishFirst } from './first-file.ts';
import type { WriterPlan } from './writer-plan.ts';

/** What states are decoded with, fixed for all shards before the first. */
export interface FixedScales extends Pick<CacheWriter, 'setScale' | 'adoptCalibration'> {
  readonly known: ReadonlyMap<HiddenLayer, HiddenScale>;
}

/** With the scales that `state` has already. */
export async function openFixedScales(
  { folder, sharesScales }: WriterPlan,
  state: CommittedState,
): Promise<FixedScales> {
  const { description } = state.body;
  const known = new Map<HiddenLayer, HiddenScale>();
  for (const { layer, path } of state.body.scales) known.set(layer, await readScale(join(folder, path), description));
  const pathOf = (layer: HiddenLayer) => scalePath(layer, description.labels.hidden!.dtype);
  const put = (path: string, scale: HiddenScale) => {
    state.requireOpen();
    return writeArrowFile(join(folder, path), encodeScale(scale));
  };
  const adopt = async (layer: HiddenLayer, { path, sizeBytes, sha256 }: ListedFile) => {
    const scale = await readScale(join(folder, path), description);
    await state.commit({ scales: [...state.body.scales, { layer, path, sizeBytes, sha256 }] });
    known.set(layer, scale);
  };
  return {
    known,
    setScale: async (layer, scale) => {
      const former = known.get(layer);
      if (former !== undefined && isSameScale(former, scale)) return;
      refuseScale(state.body, layer, scale, former);
      const path = pathOf(layer);
      if (!sharesScales) return adopt(layer, { path, ...(await put(path, scale)) });
      const own = `${path}.${randomUUID()}`;
      await put(own, scale);
      await publishFirst(join(folder, own), join(folder, path));
      await adopt(layer, { path, ...(await hashFile(join(folder, path))) });
    },
    adoptCalibration: async () => {
      for (const layer of scaledLayers(description)) {
        if (known.has(layer)) continue;
        const path = pathOf(layer);
        const digest = sharesScales ? await hashFile(join(folder, path)).catch(() => undefined) : undefined;
        if (digest === undefined) return false;
        await adopt(layer, { path, ...digest });
      }
      return true;
    },
  };
}

/** @throws StillhouseError CACHE_SCALE_INVALID unless it may be fixed */
function refuseScale(
  { description, shards }: CommittedState['body'],
  layer: HiddenLayer,
  scale: HiddenScale,
  former: HiddenScale | undefined,
): void {
  const width = description.teacher?.hiddenSize ?? 0;
  const isWanted = scaledLayers(description).includes(layer);
  const isUsable = isUsableScale(scale, description.labels.hidden?.dtype, width);
  if (isWanted && isUsable && former === undefined && shards.length === 0) return;
  throw new StillhouseError({
    code: 'CACHE_SCALE_INVALID',
    where: `scale of ${hiddenGroup(layer)}`,
    problem: isWanted && isUsable ? 'it is fixed already and shards may depend on it' : 'the cache has no place for it',
    expected: isWanted
      ? `${width} positive finite numbers or a codebook, as the dtype has it, once, before the first shard`
      : 'no such scale',
  });
}
