import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { test } from 'vitest';
import { openCache, verifyCache } from '../index.ts';
import { dumpCache } from '../testing/dump-cache.ts';
import { digestManifest } from './manifest.ts';
import { parseManifest } from './manifest-parser.ts';

const caches = fileURLToPath(new URL('../../../../test/caches', import.meta.url));

/** What newer versions say more is no fault; what an old cache said, they must say too. */
function expectContains(actual: unknown, expected: unknown, where: string): void {
  if (expected === null || typeof expected !== 'object') {
    assert.deepEqual(actual, expected, where);
    return;
  }
  if (Array.isArray(expected)) assert.equal((actual as unknown[]).length, expected.length, `${where}.length`);
  for (const [key, value] of Object.entries(expected)) {
    expectContains((actual as Record<string, unknown>)[key], value, `${where}.${key}`);
  }
}

/** Caches as versions of the format wrote them, never to be changed; each beside what was in it. */
for (const version of readdirSync(caches)) {
  for (const name of readdirSync(`${caches}/${version}`).filter((entry) => !entry.includes('.'))) {
    test(`${version}/${name} is read as it was written`, async () => {
      const folder = `${caches}/${version}/${name}`;
      assert.deepEqual((await verifyCache(folder)).problems, []);
      const cache = await openCache(folder);
      const expected: unknown = JSON.parse(readFileSync(`${folder}.expected.json`, 'utf8'));
      expectContains(await dumpCache(cache), expected, name);
      assert.equal(`v${cache.manifest.version}`, version);
      await cache.close();
    });
  }
}

test('a manifest that says it is older than what it holds is refused', () => {
  for (const [place, older] of [
    ['v4/service', 3],
    ['v4/graph', 2],
    ['v3/attention', 2],
  ] as const) {
    const text = readFileSync(`${caches}/${place}/manifest.json`, 'utf8');
    const manifest = { ...(JSON.parse(text) as { readonly version: number }), version: older };
    const sealed = JSON.stringify({ ...manifest, digest: digestManifest(manifest) });
    assert.throws(() => parseManifest(sealed, place), { code: 'CACHE_MANIFEST_INVALID', message: /version/ });
  }
});
