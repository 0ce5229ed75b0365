import assert from 'node:assert/strict';
import { mkdtemp, rm, statfs } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { runNode } from '@stillhouse/testing';
import { test } from 'vitest';
import { describeSize, openCacheWriter, readManifest } from '../index.ts';
import { describeRandomCache } from '../testing/random-cache.ts';

const SHARDS = 96;
const ROWS_PER_SHARD = 64;
const POSITIONS = 256;
const WIDTH = 1024;

test('a cache of 6 GB streams within 400 MB of memory', { timeout: 300_000 }, async (t) => {
  const { bavail, bsize } = await statfs(tmpdir());
  if (bavail * bsize < 12e9) return t.skip(`it takes 12 GB of free disk in ${tmpdir()}`);
  const folder = await mkdtemp(join(tmpdir(), 'large-cache-'));
  try {
    const rows = SHARDS * ROWS_PER_SHARD;
    const shape = { seed: 1, rows, rowsPerShard: ROWS_PER_SHARD, maxTokens: 1, vocabSize: 8, hiddenSize: WIDTH, k: 1 };
    const description = {
      ...describeRandomCache(shape),
      labels: { topk: null, hidden: { layers: ['final'], dtype: 'float32' }, head: false },
      tokenizer: null,
    } as const;
    const writer = await openCacheWriter(folder, description, { totalRows: rows });
    const values = new Float32Array(POSITIONS * WIDTH).map((_, i) => i & 1023);
    const mask = Uint8Array.from({ length: POSITIONS + 1 }, (_, token) => (token > 0 ? 1 : 0));
    for (let index = 0; index < SHARDS; index++) {
      await writer.writeShard(
        index,
        Array.from({ length: ROWS_PER_SHARD }, (_, i) => ({
          row: { id: `${index * ROWS_PER_SHARD + i}`, inputIds: new Int32Array(POSITIONS + 1), lossMask: mask },
          positions: Int32Array.from({ length: POSITIONS }, (_, position) => position),
          hidden: new Map([
            ['final' as const, { layer: 'final' as const, dtype: 'float32' as const, width: WIDTH, values }],
          ]),
        })),
      );
    }
    await writer.finish();
    await writer.close();
    assert.ok(describeSize(await readManifest(folder)).totalBytes > 6e9);
    const script = fileURLToPath(new URL('../testing/stream-cache.ts', import.meta.url));
    const { stdout: output, stderr } = await runNode([script, folder, '1'], { timeoutMs: 300_000 });
    assert.notEqual(output, '', stderr);
    const { rows: read, sum, peakBytes } = JSON.parse(output);
    assert.equal(read, rows);
    assert.equal(sum, rows * values.reduce((total, value) => total + value, 0));
    assert.ok(peakBytes < 400e6, `${Math.round(peakBytes / 1e6)} MB of memory`);
  } finally {
    await rm(folder, { recursive: true });
  }
});
