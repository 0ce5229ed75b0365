import { createHash } from 'node:crypto';
import type { HiddenLayer, HiddenScale, TeacherCache } from '../index.ts';

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
      topk: topk === undefined ? null : plain(topk),
      ...(sampled === undefined ? {} : { sampled: plain(sampled) }),
      hidden: [...(hidden ?? [])].map(([, labels]) => plain(labels)),
    });
  }
  const layers: readonly HiddenLayer[] = manifest.scales.map(({ layer }) => layer);
  const scales = await Promise.all(
    layers.map(async (layer) => ({ layer, ...describeScale((await cache.hiddenScale(layer))!) })),
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

const describeScale = (scale: HiddenScale) =>
  scale instanceof Float32Array ? { rms: [...scale] } : { codebook: plain(scale) };

/** Typed arrays as lists; JSON keeps every digit of a float32. */
function plain(value: unknown): unknown {
  if (ArrayBuffer.isView(value)) return [...(value as Int8Array)];
  if (Array.isArray(value)) return value.map(plain);
  if (value === null || typeof value !== 'object') return value;
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, plain(inner)]));
}
