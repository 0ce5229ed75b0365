/**
 * Writes caches of the current format version to test/caches/vN, with what is in them beside each, to be kept for ever.
 * Run once when a version is final, from the root: node --import tsx packages/teacher-cache/src/testing/write-caches.ts
 */
import { existsSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { FORMAT_VERSION, openCache, type TeacherIdentity, type TopKPolicy } from '../index.ts';
import { dumpCache } from './dump-cache.ts';
import { buildRandomCache, describeRandomCache, type RandomCacheShape } from './random-cache.ts';

const folder = `test/caches/v${FORMAT_VERSION}`;
if (existsSync(folder)) throw new Error(`${folder} is there: what was written is never changed`);

const shape: RandomCacheShape = {
  ...{ seed: 16, rows: 5, rowsPerShard: 2, maxTokens: 8, vocabSize: 30, hiddenSize: 6, k: 4, layers: ['final', 1] },
};
const base = describeRandomCache(shape);

async function write(name: string, teacher: TeacherIdentity, topk: TopKPolicy): Promise<void> {
  const hasStates = teacher.hiddenSize !== undefined;
  const labels = { topk, hidden: hasStates ? base.labels.hidden : null, head: hasStates };
  await buildRandomCache(`${folder}/${name}`, shape, { ...base, teacher, labels });
  const cache = await openCache(`${folder}/${name}`);
  await writeFile(`${folder}/${name}.expected.json`, `${JSON.stringify(await dumpCache(cache), null, 1)}\n`);
  await cache.close();
}

// A cache has the lowest version that can say what it holds: version 4 is for teachers that are no folder of weights,
// and for tails that are unknown. What is in v1, v2 and v3 was written by the script as it was then.
const unknown = { k: 4, temperatures: [], tail: 'unknown' } as const;
const graph = { kind: 'graph', name: 'model.gguf', sha256: 'e'.repeat(64), vocabSize: 30 } as const;
await write('service', { kind: 'service', name: 'large-v1', fingerprint: 'fp_16', vocabSize: 30 }, unknown);
await write('graph', { ...graph, hiddenSize: 6, layerCount: 2 }, { k: 4, temperatures: [1, 2], packing: 'zstd' });
await write('weights', base.teacher!, { ...unknown, packing: 'zstd', logprobDtype: 'uint8', keepTarget: true });
