import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdir, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { runNode } from '@stillhouse/testing';
import { test } from 'vitest';
import { encodeShard } from '../codecs/arrow-encoding.ts';
import { loadZstd } from '../codecs/zstd.ts';
import { openCache, openCacheWriter, verifyCache } from '../index.ts';
import {
  buildRandomCache,
  describeRandomCache,
  prepareRandomCache,
  type RandomCacheShape,
  randomRow,
} from '../testing/random-cache.ts';
import { inFolder } from '../testing/scratch-folder.ts';

const zstd = await loadZstd();

test('a full disk: the error says so, the cache is valid up to its last shard and goes on with more room', async (t) => {
  await inFolder(async (folder) => {
    await mkdir(folder);
    const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', folder]);
    if (mounted.status !== 0) return t.skip('mounting a small tmpfs needs root');
    try {
      const shape: RandomCacheShape = {
        seed: 1,
        rows: 40,
        rowsPerShard: 4,
        maxTokens: 60,
        vocabSize: 50,
        hiddenSize: 48,
        k: 20,
      };
      const cachePath = join(folder, 'cache');
      await assert.rejects(buildRandomCache(cachePath, shape), {
        code: 'DISK_FULL',
        message: /the disk is full/,
      });
      const files = (await readdir(cachePath, { recursive: true })).filter((name) => name.endsWith('.partial'));
      assert.deepEqual(files, []);
      const report = await verifyCache(cachePath);
      assert.deepEqual([report.problems, report.complete], [[], false]);
      assert.ok(report.rowsChecked > 0 && report.rowsChecked < 40);
      execFileSync('mount', ['-o', 'remount,size=16m', folder]);
      await buildRandomCache(cachePath, shape);
      assert.deepEqual((await verifyCache(cachePath)).problems, []);
    } finally {
      execFileSync('umount', [folder]);
    }
  });
});

test('a cache streams in memory that does not grow with it', { timeout: 60_000 }, () =>
  inFolder(async (folder) => {
    // 20 shards of 16 MiB of states each, in rows of 1 MiB.
    const description = {
      ...describeRandomCache({
        seed: 1,
        rows: 320,
        rowsPerShard: 16,
        maxTokens: 1,
        vocabSize: 8,
        hiddenSize: 1024,
        k: 1,
      }),
      labels: { topk: null, hidden: { layers: ['final'], dtype: 'float32' }, head: false },
      tokenizer: null,
    } as const;
    const writer = await openCacheWriter(folder, description, { totalRows: 320 });
    const values = new Float32Array(256 * 1024).map((_, i) => i & 1023);
    for (let index = 0; index < writer.shardCount; index++) {
      const rows = Array.from({ length: 16 }, (_, i) => ({
        row: {
          id: `${index * 16 + i}`,
          inputIds: new Int32Array(257),
          lossMask: Uint8Array.from({ length: 257 }, (_, token) => (token > 0 ? 1 : 0)),
        },
        positions: Int32Array.from({ length: 256 }, (_, position) => position),
        hidden: new Map([
          ['final' as const, { layer: 'final' as const, dtype: 'float32' as const, width: 1024, values }],
        ]),
      }));
      await writer.writeShard(index, rows);
    }
    await writer.finish();
    await writer.close();
    const script = fileURLToPath(new URL('../testing/stream-cache.ts', import.meta.url));
    const { stdout: output, stderr } = await runNode([script, folder]);
    assert.notEqual(output, '', stderr);
    const { rows, sum, growthBytes } = JSON.parse(output);
    assert.equal(rows, 640);
    assert.equal(sum, 640 * values.reduce((total, value) => total + value, 0));
    assert.ok(growthBytes < 160 << 20, `memory grew by ${Math.round(growthBytes / 2 ** 20)} MiB for 320 MiB of states`);
  }),
);

test('a row of 2 GiB is refused, not corrupted', () => {
  const shape: RandomCacheShape = {
    seed: 1,
    rows: 1,
    rowsPerShard: 1,
    maxTokens: 3,
    vocabSize: 9,
    hiddenSize: 1,
    k: 1,
  };
  const base = describeRandomCache(shape);
  // Untouched zeros take no memory: 2^31 states of int8 at 2^21 positions.
  const width = 1024;
  const positions = 2 ** 21;
  const description = {
    ...base,
    teacher: { ...base.teacher!, kind: 'graph', sha256: 'e'.repeat(64), hiddenSize: width },
    labels: { topk: null, hidden: { layers: ['final'], dtype: 'int8' }, head: false },
  } as const;
  const row = {
    ...randomRow(shape, 0, base),
    hidden: new Map([
      [
        'final' as const,
        { layer: 'final' as const, dtype: 'int8' as const, width, values: new Int8Array(width * positions) },
      ],
    ]),
  };
  assert.throws(() => [...encodeShard([row], 'final', description, { zstd })], { code: 'CACHE_ROW_TOO_LARGE' });
});

test('a description that cannot be is refused before a folder is made', () =>
  inFolder(async (folder) => {
    const shape: RandomCacheShape = {
      seed: 1,
      rows: 1,
      rowsPerShard: 1,
      maxTokens: 3,
      vocabSize: 9,
      hiddenSize: 1,
      k: 1,
    };
    const base = describeRandomCache(shape);
    const withLabels = (labels: object) => ({ ...base, labels: { ...base.labels, ...labels } });
    const cases = [
      ['TOP_K_LARGER_THAN_VOCABULARY', /at most 9, got 10/, withLabels({ topk: { k: 10, temperatures: [1] } })],
      ['CACHE_DESCRIPTION_INVALID', /0\.01 to 1000, got 0/, withLabels({ topk: { k: 1, temperatures: [0] } })],
      ['CACHE_DESCRIPTION_INVALID', /named twice/, withLabels({ topk: { k: 1, temperatures: [1, 1] } })],
      [
        'CACHE_DESCRIPTION_INVALID',
        /final, 0 to 4 or attention.1 to attention.4, got 5/,
        withLabels({ hidden: { layers: [5], dtype: 'int8' } }),
      ],
      [
        'CACHE_DESCRIPTION_INVALID',
        /int8, int8-groups, coded, float16 or float32/,
        withLabels({ hidden: { layers: [1], dtype: 'int4' } }),
      ],
      ['CACHE_DESCRIPTION_INVALID', /no teacher/, { ...base, teacher: null }],
      ['CACHE_DESCRIPTION_INVALID', /rowsPerShard/, { ...base, rowsPerShard: 0 }],
      ['CACHE_DESCRIPTION_INVALID', /response or all/, { ...base, positions: 'some' as 'all' }],
    ] as const;
    for (const [code, message, description] of cases) {
      await assert.rejects(openCacheWriter(folder, description as typeof base, { totalRows: 1 }), { code, message });
    }
    await assert.rejects(openCacheWriter(folder, base, { totalRows: 0 }), { code: 'CACHE_DESCRIPTION_INVALID' });
    await assert.rejects(openCache(folder), { code: 'CACHE_NOT_FOUND' });
    const writer = await openCacheWriter(folder, base, { totalRows: 1 });
    for (const name of ['../evil', '.lock', 'x.partial']) {
      await assert.rejects(writer.putTokenizerFiles([{ name, bytes: new Uint8Array(0) }]), {
        code: 'CACHE_DESCRIPTION_INVALID',
      });
    }
    await prepareRandomCache(writer);
    await writer.close();
  }));
