import { createHash } from 'node:crypto';
import type { HiddenLayer, TeacherCache } from '../index.ts';

const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');

/** All that a cache says, as JSON: what was read from a cache of an older version is compared with this. */
export async function dumpCache(cache: TeacherCache): Promise<object> {
  const { description, manifest } = cache;
  const rows: object[] = [];
  for await (const { row, positions, topk, sampled, hidden } of cache.rows()) {
    const { inputIds, lossMask, ...metadata } = row;
    rows.push({
      ...metadata,
      inputIds: [...inputIds],
      lossMask: [...lossMask],
      positions: [...positions],
      topk: topk === undefined ? null : mapArrays(topk),
      ...(sampled === undefined ? {} : { sampled: mapArrays(sampled) }),
      hidden: [...(hidden ?? [])].map(([, labels]) => mapArrays(labels)),
    });
  }
  const layers: readonly HiddenLayer[] = manifest.scales.map(({ layer }) => layer);
  const scales = await Promise.all(
    layers.map(async (layer) => ({ layer, rms: [...((await cache.hiddenScale(layer)) as Float32Array)] })),
  );
  const matrix = manifest.outputMatrix === null ? null : await cache.readOutputMatrix();
  return {
    digest: cache.digest,
    description,
    rows,
    scales,
    outputMatrix:
      matrix === null
        ? null
        : { sha256OfFloat32: sha256(new Uint8Array(matrix.buffer)), first: [...matrix.subarray(0, 8)] },
  };
}

/** Typed arrays as lists; JSON keeps every digit of a float32. */
function mapArrays(labels: object): object {
  return Object.fromEntries(
    Object.entries(labels).map(([key, value]) => [key, ArrayBuffer.isView(value) ? [...(value as Int8Array)] : value]),
  );
}
