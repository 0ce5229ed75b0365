// Writes caches of the current format version to test/caches/vN, with what is in them beside each, to be kept for ever.
// Run once when a version is final, from the root: node --import tsx test/write-caches.ts
import { existsSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { resolveSettings } from '@stillhouse/settings';
import { FORMAT_VERSION } from '@stillhouse/teacher-cache';
import { BUILD_SETTINGS, type BuildSettings, buildTeacherCache } from '@stillhouse/teacher-inference';
import { runNode } from '@stillhouse/testing';

const folder = `test/caches/v${FORMAT_VERSION}`;
if (existsSync(folder)) throw new Error(`${folder} is there: what was written is never changed`);

const rows = [
  {
    id: 'sum ä',
    task: 'arithmetic',
    split: 'train',
    source: 'made up',
    answer: '42',
    prompt: '12 + 30 = ',
    response: '42',
  },
  { text: 'Tom has 3 apples.', split: 'test' },
  { id: 'ids', input_ids: [5, 6, 7, 8, 9], loss_mask: [0, 0, 1, 1, 0] },
  { id: 'last', prompt: '7 * 6 = ', response: '7*6=42. #### 42', answer: '42' },
  { id: 'more', prompt: '1 + 1 = ', response: '2' },
];

const scratch = await mkdtemp(join(tmpdir(), 'caches-'));
const data = join(scratch, 'rows.jsonl');
await writeFile(data, rows.map((row) => `${JSON.stringify(row)}\n`).join(''));

async function write(name: string, settings: Partial<BuildSettings>): Promise<void> {
  const out = `${folder}/${name}`;
  const common = { threads: 1, teacher: 'test/golden/qwen2-tiny-untied', tokenizer: 'data/demo/tokenizer', data, out };
  await buildTeacherCache(resolveSettings(BUILD_SETTINGS, { ...common, rowsPerShard: 2, ...settings }));
  const { code, stderr } = await runNode(['packages/teacher-cache/src/testing/write-expected.ts', out]);
  if (code !== 0) throw new Error(stderr);
}

// A cache has the lowest version that can say what it holds: version 3 is for attention outputs. What is in v1 and v2 was
// written by the script as it was then.
await write('attention', { labels: ['hidden'], hiddenLayers: [1, 'attention.1', 'attention.2'], hiddenDtype: 'f16' });
await rm(scratch, { recursive: true });
