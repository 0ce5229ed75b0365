import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { mkdir, readdir, rm, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { isStillhouseError } from '@stillhouse/errors';
import { randomUniforms, startNode } from '@stillhouse/testing';
import { test } from 'vitest';
import { openCache, openCacheWriter, verifyCache } from '../index.ts';
import {
  buildRandomCache,
  describeRandomCache,
  prepareRandomCache,
  type RandomCacheShape,
  randomRow,
} from '../testing/random-cache.ts';
import { inFolder } from '../testing/scratch-folder.ts';

const shape: RandomCacheShape = {
  seed: 21,
  rows: 120,
  rowsPerShard: 4,
  maxTokens: 60,
  vocabSize: 300,
  hiddenSize: 32,
  k: 16,
};

/** Every file of a folder by its path, temporary ones too. */
function readTree(folder: string): Map<string, string> {
  const files = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  return new Map(
    files
      .map((entry) => join(entry.parentPath, entry.name))
      .sort()
      .map((path) => [path.slice(folder.length + 1), readFileSync(path).toString('base64')]),
  );
}

function startBuilder(folder: string) {
  const script = fileURLToPath(new URL('../testing/build-random-cache.ts', import.meta.url));
  const { child, finished } = startNode([script, folder, JSON.stringify(shape)]);
  return { child, ended: finished.then(({ code, stderr }) => ({ code, errors: stderr })) };
}

const storedRows = (folder: string): number => {
  try {
    return JSON.parse(readFileSync(join(folder, 'manifest.json'), 'utf8')).rows.stored;
  } catch {
    return -1;
  }
};

test('a builder killed ten times at random points ends with the bytes of one that was not', { timeout: 120_000 }, () =>
  inFolder(async (folder) => {
    await mkdir(folder);
    const straight = join(folder, 'straight');
    await buildRandomCache(straight, shape);
    const random = randomUniforms(Date.now());
    const killed = join(folder, 'killed');
    const states: number[] = [];
    for (let kill = 0; kill < 10; kill++) {
      const { child, ended } = startBuilder(killed);
      // Kill when a random share of the remaining work is done, the first before there is a manifest at all.
      const before = storedRows(killed);
      const goal = kill === 0 ? -1 : Math.min(100, before + 4 * Math.floor(1 + 2 * random()));
      const isDone = { value: false };
      void ended.then(() => {
        isDone.value = true;
      });
      while (!isDone.value && storedRows(killed) < goal) await sleep(1);
      await sleep(kill === 0 ? 100 * random() : 4 * random());
      child.kill('SIGKILL');
      const { errors } = await ended;
      assert.equal(errors, '');
      const stored = storedRows(killed);
      states.push(stored);
      if (stored < 0) continue;
      // What is there is valid up to its last shard.
      const report = await verifyCache(killed);
      assert.deepEqual(report.problems, []);
      assert.equal(report.rowsChecked, stored);
      const cache = await openCache(killed, { allowIncomplete: true });
      assert.equal(cache.rowCount, stored);
      await cache.close();
    }
    assert.ok(new Set(states).size >= 5, `the kills fell on too few states: ${states}`);
    await buildRandomCache(killed, shape);
    assert.deepEqual(readTree(killed), readTree(straight));
    assert.deepEqual((await verifyCache(killed)).problems, []);
  }),
);

test('a complete cache is reported as such and left as it is', () =>
  inFolder(async (folder) => {
    await buildRandomCache(folder, shape);
    const before = readTree(folder);
    const writer = await openCacheWriter(folder, describeRandomCache(shape), { totalRows: shape.rows });
    assert.equal(writer.isComplete, true);
    assert.equal(writer.completedShards, writer.shardCount);
    await assert.rejects(writer.writeShard(0, []), { code: 'CACHE_SHARD_UNEXPECTED' });
    await writer.close();
    assert.deepEqual(readTree(folder), before);
  }));

test('another description is refused with what differs, and nothing is touched', () =>
  inFolder(async (folder) => {
    await buildRandomCache(folder, shape);
    const before = readTree(folder);
    const base = describeRandomCache(shape);
    const other = {
      ...base,
      maxLength: 512,
      tokenizer: null,
      labels: { ...base.labels, topk: { k: 8, temperatures: [1, 2] } },
    };
    await assert.rejects(openCacheWriter(folder, other, { totalRows: 119 }), (error) => {
      assert.ok(isStillhouseError(error, 'CACHE_CONFIG_MISMATCH'));
      assert.match(error.message, /expected .*labels\.topk\.k 16, .*got .*labels\.topk\.k 8/);
      assert.match(error.message, /maxLength null.*maxLength 512/);
      assert.match(error.message, /temperatures \[1,2,4\].*temperatures \[1,2\]/);
      assert.match(error.message, /totalRows 120.*totalRows 119/);
      assert.match(error.message, /tokenizer\.realVocabSize 300.*tokenizer\.realVocabSize nothing/);
      assert.doesNotMatch(error.message, /rowsPerShard|weightsSha256/);
      return true;
    });
    assert.deepEqual(readTree(folder), before);
  }));

test('other tokenizer files or scales than those of the first run are refused', () =>
  inFolder(async (folder) => {
    const writer = await openCacheWriter(folder, describeRandomCache(shape), { totalRows: shape.rows });
    await prepareRandomCache(writer);
    await prepareRandomCache(writer);
    const files = [{ name: 'tokenizer.json', bytes: Buffer.from('{}') }];
    await assert.rejects(writer.putTokenizerFiles(files), {
      code: 'CACHE_CONFIG_MISMATCH',
      message: /chat_template\.jinja, tokenizer\/tokenizer\.json/,
    });
    await assert.rejects(writer.setScale('final', new Float32Array(32).fill(9)), { code: 'CACHE_SCALE_INVALID' });
    await assert.rejects(writer.setScale(1, new Float32Array(32).fill(1)), { code: 'CACHE_SCALE_INVALID' });
    await writer.close();
  }));

test('two builders in one folder: the second is refused; the lock of a dead process is not in the way', () =>
  inFolder(async (folder) => {
    const open = () => openCacheWriter(folder, describeRandomCache(shape), { totalRows: shape.rows });
    const first = await open();
    const refusal = { code: 'CACHE_IN_USE', message: new RegExp(`process ${process.pid} on ${hostname()}`) };
    await assert.rejects(open(), refusal);
    const { ended } = startBuilder(folder);
    const { code, errors } = await ended;
    assert.equal(code, 1);
    assert.match(errors, /another builder is writing this cache/);
    await first.close();
    await first.close();

    const dead = execFileSync(process.execPath, ['-p', 'process.pid'], { encoding: 'utf8' }).trim();
    const lock = join(folder, '.lock');
    await writeFile(lock, JSON.stringify({ pid: Number(dead), host: hostname(), started: null }));
    await (await open()).close();
    // The number of a dead process is given out again, here to this one.
    await writeFile(lock, JSON.stringify({ pid: process.pid, host: hostname(), started: '1' }));
    await (await open()).close();
    await writeFile(lock, '');
    await (await open()).close();
    await writeFile(lock, JSON.stringify({ pid: Number(dead), host: 'elsewhere', started: null }));
    await assert.rejects(open(), { code: 'CACHE_IN_USE', message: /delete .*\.lock/ });
    await rm(lock);
    assert.deepEqual(await readdir(folder), ['manifest.json']);
  }));

test('a folder with something else in it is left alone', () =>
  inFolder(async (folder) => {
    await mkdir(folder);
    await writeFile(join(folder, 'thesis.tex'), 'precious');
    const open = (path: string) => openCacheWriter(path, describeRandomCache(shape), { totalRows: shape.rows });
    await assert.rejects(open(folder), { code: 'CACHE_FOLDER_NOT_EMPTY', message: /thesis\.tex/ });
    await assert.rejects(open(join(folder, 'thesis.tex')), { code: 'CACHE_FOLDER_NOT_EMPTY' });
    assert.deepEqual(await readdir(folder), ['thesis.tex']);
  }));

test('shards come in order, and a cache is complete only with all that its description has', () =>
  inFolder(async (folder) => {
    const small = { ...shape, rows: 6, maxTokens: 5 };
    const description = describeRandomCache(small);
    const writer = await openCacheWriter(folder, description, { totalRows: 6 });
    const row = (index: number) => randomRow(small, index, writer.description);
    await assert.rejects(writer.writeShard(0, [0, 1, 2, 3].map(row)), {
      code: 'CACHE_SCALE_INVALID',
      message: /must be set before the first shard/,
    });
    await writer.setScale('final', new Float32Array(32).fill(1));
    await writer.setScale(2, new Float32Array(32).fill(1));
    await assert.rejects(writer.writeShard(1, [4, 5].map(row)), { code: 'CACHE_SHARD_UNEXPECTED' });
    await assert.rejects(writer.writeShard(0, [0, 1, 2].map(row)), { code: 'CACHE_SHARD_UNEXPECTED' });
    await writer.writeShard(0, [0, 1, 2, 3].map(row));
    await writer.close();

    const resumed = await openCacheWriter(folder, description, { totalRows: 6 });
    assert.equal(resumed.completedShards, 1);
    assert.deepEqual(resumed.scale('final'), new Float32Array(32).fill(1));
    await assert.rejects(resumed.writeShard(1, [4, 0].map(row)), {
      code: 'CACHE_ROW_INVALID',
      message: /row 0 ä.*another row has the same id/,
    });
    await assert.rejects(resumed.finish(), {
      code: 'CACHE_UNFINISHED',
      message: /without 1 shards, the tokenizer files, the output matrix/,
    });
    await assert.rejects(openCache(folder), { code: 'CACHE_INCOMPLETE', message: /4 of 6 rows/ });
    const matrix = { dtype: 'bfloat16', rows: 300, columns: 32 } as const;
    const tooShort = { ...matrix, chunks: [new Uint8Array(300 * 32 * 2 - 1)] };
    await assert.rejects(resumed.putOutputMatrix(tooShort), { code: 'CACHE_MATRIX_INVALID' });
    const tooLong = { ...matrix, chunks: [new Uint8Array(300 * 32 * 2 + 1)] };
    await assert.rejects(resumed.putOutputMatrix(tooLong), { code: 'CACHE_MATRIX_INVALID' });
    await assert.rejects(resumed.putOutputMatrix({ ...matrix, rows: 299, chunks: [] }), {
      code: 'CACHE_MATRIX_INVALID',
    });
    async function* failing() {
      yield new Uint8Array(100);
      throw new Error('the weights cannot be read');
    }
    await assert.rejects(resumed.putOutputMatrix({ ...matrix, chunks: failing() }), /weights cannot be read/);
    assert.deepEqual(await readdir(join(folder, 'head')), []);
    await resumed.close();
  }));
