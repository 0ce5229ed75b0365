import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { resolveSettings } from '@stillhouse/settings';
import { listFiles, readManifest } from '@stillhouse/teacher-cache';
import { makeTemporaryFolder } from '@stillhouse/testing';
import { test } from 'vitest';
import { type BuildSettings, buildTeacherCache, REPAIR_SETTINGS, repairTeacherCache } from '../index.ts';
import { buildSettings, idRows, readTree, writeRows } from '../testing/build-folder.ts';
import { goldenFolder } from '../testing/golden-teachers.ts';

const teacher = goldenFolder('qwen2-tiny-untied');

/** Whatever labels are stored as, parts and repairs end in the bytes of one builder. */
const FORMS: Readonly<Record<string, Partial<BuildSettings>>> = {
  'coded states': { hiddenDtype: 'coded', hiddenBytes: 24, hiddenLayers: ['final', 1] },
  'int8 groups': { hiddenDtype: 'int8-groups', labels: ['hidden'] },
  'ragged top-k': { labels: ['topk'], topP: 0.9, minK: 2, maxK: 16 },
  'sampled labels': { labels: ['sampled'] },
};

for (const [name, form] of Object.entries(FORMS)) {
  test(`${name} in parts and repaired`, async (t) => {
    const folder = await makeTemporaryFolder(t);
    const data = await writeRows(join(folder, 'rows.jsonl'), idRows(14));
    const build = (out: string, partition?: string) =>
      buildTeacherCache(
        buildSettings({
          teacher,
          data,
          out: join(folder, out),
          rowsPerShard: 4,
          ...form,
          ...(partition === undefined ? {} : { partition }),
        }),
      );
    await build('straight');
    const straight = readTree(join(folder, 'straight'));
    for (const partition of ['3/3', '2/3', '1/3']) await build('parts', partition);
    const cache = join(folder, 'parts');
    assert.deepEqual(readTree(cache), straight);
    const paths = [...listFiles(await readManifest(cache))].map(({ file }) => file.path);
    for (const path of paths) {
      const bytes = await readFile(join(cache, path));
      bytes[bytes.length >> 1]! ^= 1;
      await writeFile(join(cache, path), bytes);
    }
    const settings = resolveSettings(REPAIR_SETTINGS, { threads: 1, cache, teacher, data: [data] });
    assert.deepEqual((await repairTeacherCache(settings)).repaired, paths);
    assert.deepEqual(readTree(cache), straight);
  });
}
