import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'vitest';
import {
  type CacheDescription,
  normaliseDescription,
  openCache,
  requireSameTeacher,
  type TopKPolicy,
} from '../index.ts';
import { buildRandomCache, describeRandomCache, type RandomCacheShape } from '../testing/random-cache.ts';
import { inFolder } from '../testing/scratch-folder.ts';
import type { TeacherIdentity } from './teacher-identity.ts';

const shape: RandomCacheShape = {
  ...{ seed: 5, rows: 3, rowsPerShard: 2, maxTokens: 6, vocabSize: 20, hiddenSize: 4, k: 3 },
};
const base = describeRandomCache(shape);
const weights = base.teacher!;
const graph = { kind: 'graph', name: 'model.gguf', sha256: 'e'.repeat(64), vocabSize: 20 } as const;
const service: TeacherIdentity = { kind: 'service', name: 'large-v1', fingerprint: 'fp_1', vocabSize: 20 };
const unknown: TopKPolicy = { k: 3, temperatures: [], tail: 'unknown' };

const describe = (teacher: TeacherIdentity, labels: Partial<CacheDescription['labels']> = {}): CacheDescription => ({
  ...base,
  teacher,
  labels: { ...base.labels, hidden: null, head: false, ...labels },
});

test('a cache has the lowest version that can say what it holds, and gives back who the teacher was', async () => {
  const states = { hidden: { layers: ['final'], dtype: 'int8' }, head: true } as const;
  const cases: readonly (readonly [number, string | null, CacheDescription])[] = [
    [2, 'a'.repeat(64), describe(weights, states)],
    [3, 'a'.repeat(64), describe(weights, { hidden: { layers: ['attention.1'], dtype: 'float32' } })],
    [4, 'a'.repeat(64), describe(weights, { topk: unknown })],
    [4, graph.sha256, describe(graph)],
    [4, graph.sha256, describe({ ...graph, hiddenSize: 4, layerCount: 2 }, states)],
    [4, null, describe(service, { topk: unknown })],
  ];
  for (const [version, sha256, described] of cases) {
    await inFolder(async (folder) => {
      await buildRandomCache(folder, shape, described);
      const cache = await openCache(folder);
      assert.equal(cache.manifest.version, version);
      assert.deepEqual(cache.description.teacher, described.teacher);
      const topk = cache.manifest.provenance.find(({ group }) => group === 'topk')!;
      assert.equal(topk.teacherSha256, sha256);
      const text = await readFile(join(folder, 'manifest.json'), 'utf8');
      assert.equal(text.includes('"kind"'), described.teacher!.kind !== 'weights');
      await cache.close();
    });
  }
});

test('a teacher that cannot be is refused, and one that is no folder of weights is nobody', () => {
  const states = { layers: ['final'], dtype: 'float32' } as const;
  const cases: readonly (readonly [RegExp, CacheDescription])[] = [
    [
      /teacher\.kind is unknown; expected weights, graph or service, got oracle/,
      describe({ ...graph, kind: 'oracle' as 'graph' }),
    ],
    [/teacher\.layerCount is not a possible number/, describe({ ...graph, layerCount: 0 })],
    [/unknown width; expected teacher\.hiddenSize, got service/, describe(service, { head: true })],
    [/unknown width/, describe(graph, { hidden: states })],
    [/layers of unknown number/, describe({ ...graph, hiddenSize: 4 }, { hidden: states })],
  ];
  for (const [message, description] of cases)
    assert.throws(() => normaliseDescription(description), { code: 'CACHE_DESCRIPTION_INVALID', message });
  const found = { weightsSha256: 'a'.repeat(64), configSha256: 'b'.repeat(64) };
  const same: (known: TeacherIdentity) => void = (known) => requireSameTeacher(found, known, 'DIR');
  same(weights);
  for (const [known, message] of [
    [{ ...weights, configSha256: 'c'.repeat(64) } as TeacherIdentity, /expected configSha256 c{64}, got b{64}/],
    [graph, /of the cache, model\.gguf; expected a graph e{64}/],
    [service, /expected a service large-v1/],
  ] as const)
    assert.throws(() => same(known), { code: 'TEACHER_MISMATCH', message });
});
