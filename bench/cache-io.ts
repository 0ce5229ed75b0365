/**
 * How fast a teacher cache is written and read, against the plain file system and pyarrow on the same data.
 *   node --import tsx bench/cache-io.ts [FOLDER]      STILLHOUSE_PYTHON=python for the pyarrow columns
 * The shape is that of a 1.5B teacher: 512-token rows, top 64, int8 hidden states of width 1,536. Prints MB/s and
 * ratios; only the ratios mean something on another machine.
 */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtemp, open, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { exportParquet } from '@stillhouse/cache-exchange';
import {
  type CacheDescription,
  describeSize,
  type LabelledRow,
  openCache,
  openCacheWriter,
  readManifest,
  verifyCache,
} from '@stillhouse/teacher-cache';

const ROWS = 320;
const TOKENS = 513;
const K = 64;
const WIDTH = 1536;
const VOCABULARY = 151_936;

const description: CacheDescription = {
  teacher: {
    name: 'synthetic',
    architecture: 'qwen2',
    weightsSha256: '0'.repeat(64),
    configSha256: '0'.repeat(64),
    hiddenSize: WIDTH,
    layerCount: 28,
    vocabSize: VOCABULARY,
  },
  tokenizer: null,
  data: { sha256: '0'.repeat(64), name: 'synthetic', rowCount: ROWS },
  maxLength: null,
  limit: null,
  labels: { topk: { k: K, temperatures: [1, 2, 4] }, hidden: { layers: ['final'], dtype: 'int8' }, head: false },
  positions: 'all',
  rowsPerShard: 64,
  generator: { name: 'bench', version: '1' },
};

/** Labels of one row: p falls off as 1 / 2^rank, the tail is what the top k leave. */
function makeRow(index: number): LabelledRow {
  const positions = TOKENS - 1;
  const logprobs = Float32Array.from({ length: positions * K }, (_, i) => -Math.LN2 * ((i % K) + 1));
  const logZ = [1, 2, 4].map((t) => {
    let sum = 0;
    for (let rank = 1; rank <= K; rank++) sum += 2 ** (-rank / t);
    return t === 1 ? 0 : Math.log(sum);
  });
  return {
    row: {
      id: `row-${index}`,
      inputIds: Int32Array.from({ length: TOKENS }, (_, i) => (i * 7919 + index) % VOCABULARY),
      lossMask: new Uint8Array(TOKENS),
    },
    positions: Int32Array.from({ length: positions }, (_, i) => i),
    topk: {
      counts: new Int32Array(positions).fill(K),
      ids: Int32Array.from({ length: positions * K }, (_, i) => (i * 613 + index) % VOCABULARY),
      logprobs,
      logZ: Float32Array.from({ length: positions * 3 }, (_, i) => logZ[i % 3]!),
    },
    hidden: new Map([
      [
        'final',
        {
          layer: 'final',
          dtype: 'int8',
          width: WIDTH,
          values: Int8Array.from({ length: positions * WIDTH }, (_, i) => ((i * 31 + index) % 255) - 127),
          tokenScale: new Float32Array(positions).fill(0.01),
        },
      ],
    ]),
  };
}

const results: { what: string; megabytesPerSecond: number; ratio: number }[] = [];
async function measure(what: string, sizeBytes: number, work: () => Promise<unknown>, base?: number): Promise<number> {
  const start = performance.now();
  await work();
  const megabytesPerSecond = sizeBytes / 1e3 / (performance.now() - start);
  results.push({ what, megabytesPerSecond, ratio: megabytesPerSecond / (base ?? megabytesPerSecond) });
  return megabytesPerSecond;
}

const folder = await mkdtemp(join(process.argv[2] ?? tmpdir(), 'cache-io-'));
try {
  const rows = Array.from({ length: ROWS }, (_, i) => makeRow(i));
  const cachePath = join(folder, 'cache');
  const write = async () => {
    const writer = await openCacheWriter(cachePath, description, { totalRows: ROWS });
    await writer.setScale('final', new Float32Array(WIDTH).fill(1));
    for (let index = 0; index < writer.shardCount; index++) {
      await writer.writeShard(index, rows.slice(...writer.shardRange(index)));
    }
    await writer.finish();
    await writer.close();
  };
  // Once to learn the size and to warm up, then again to measure.
  await write();
  const sizeBytes = describeSize(await readManifest(cachePath)).totalBytes;
  await rm(cachePath, { recursive: true });
  const blob = Buffer.alloc(1 << 20, 7);
  const plainPath = join(folder, 'plain');
  const writePlain = async (withHash: boolean) => {
    const handle = await open(plainPath, 'w');
    const hash = createHash('sha256');
    for (let done = 0; done < sizeBytes; done += blob.length) {
      await handle.write(blob);
      if (withHash) hash.update(blob);
    }
    await handle.sync();
    await handle.close();
  };
  const plainWrite = await measure('write: plain fs', sizeBytes, () => writePlain(false));
  await measure('write: plain fs + sha256', sizeBytes, () => writePlain(true), plainWrite);
  await measure('write: teacher-cache (checks, sha256, sync)', sizeBytes, write, plainWrite);

  const readPlain = async () => {
    const handle = await open(plainPath, 'r');
    const { size } = await stat(plainPath);
    for (let offset = 0; offset < size; offset += blob.length) await handle.read(blob, 0, blob.length, offset);
    await handle.close();
  };
  const plainRead = await measure('read: plain fs, warm', sizeBytes, readPlain);
  const stream = async (verifyOnRead: 'first-touch' | 'never') => {
    const cache = await openCache(cachePath, { verifyOnRead });
    let positions = 0;
    for await (const row of cache.rows()) positions += row.positions.length;
    await cache.close();
    if (positions !== ROWS * (TOKENS - 1)) throw new Error(`${positions} positions`);
  };
  await measure('read: teacher-cache, never hashed', sizeBytes, () => stream('never'), plainRead);
  await measure('read: teacher-cache, hashed at first touch', sizeBytes, () => stream('first-touch'), plainRead);
  await measure('verify', sizeBytes, () => verifyCache(cachePath), plainRead);

  const cache = await openCache(cachePath, { verifyOnRead: 'never', batchCacheBytes: 1 });
  const latencies: number[] = [];
  for (let i = 0; i < 200; i++) {
    const start = performance.now();
    await cache.readRow((i * 97) % ROWS);
    latencies.push(performance.now() - start);
  }
  latencies.sort((a, b) => a - b);
  console.log(
    `one row at random (1.1 MB, all groups): median ${latencies[100]!.toFixed(2)} ms, p95 ${latencies[190]!.toFixed(2)} ms`,
  );
  await measure('export to Parquet', sizeBytes, () => exportParquet(cache, join(folder, 'parquet')), plainWrite);
  await cache.close();

  const python = process.env.STILLHOUSE_PYTHON;
  if (python === undefined) console.log('STILLHOUSE_PYTHON is not set: no pyarrow columns');
  else {
    const manifest = JSON.parse(await readFile(join(cachePath, 'manifest.json'), 'utf8'));
    const paths = manifest.shards.flatMap((shard: { files: Record<string, { path: string }> }) =>
      Object.values(shard.files).map(({ path }) => join(cachePath, path)),
    );
    const script = `
import sys, time, os, pyarrow as pa, pyarrow.ipc
paths = sys.argv[1:]
start = time.perf_counter(); tables = []
for path in paths:
    with open(path, 'rb') as source: tables.append(pa.ipc.open_file(source).read_all())
read = time.perf_counter() - start
start = time.perf_counter()
for i, table in enumerate(tables):
    with open(os.path.join(${JSON.stringify(folder)}, f'{i}.arrow'), 'wb') as out:
        with pa.ipc.new_file(out, table.schema) as writer: writer.write_table(table)
        out.flush(); os.fsync(out.fileno())
written = time.perf_counter() - start
import pyarrow.parquet as pq
start = time.perf_counter()
for i, table in enumerate(tables): pq.write_table(table, os.path.join(${JSON.stringify(folder)}, f'{i}.parquet'), compression='zstd')
parquet = time.perf_counter() - start
start = time.perf_counter()
for i in range(len(tables)): pq.read_table(os.path.join(${JSON.stringify(folder)}, f'{i}.parquet'))
print(read, written, parquet, time.perf_counter() - start)`;
    const [read, written, parquetWritten, parquetRead] = execFileSync(python, ['-c', script, ...paths], {
      encoding: 'utf8',
    })
      .trim()
      .split(' ')
      .map(Number);
    const add = (what: string, seconds: number, base: number) =>
      results.push({ what, megabytesPerSecond: sizeBytes / 1e6 / seconds, ratio: sizeBytes / 1e6 / seconds / base });
    add('write: pyarrow (no hash, no checks)', written!, plainWrite);
    add('read: pyarrow', read!, plainRead);
    add('write: pyarrow Parquet, zstd, not synced', parquetWritten!, plainWrite);
    add('read: pyarrow Parquet', parquetRead!, plainRead);
  }
  console.log(`${(sizeBytes / 1e6).toFixed(0)} MB, ${ROWS} rows, ${ROWS * (TOKENS - 1)} positions`);
  for (const { what, megabytesPerSecond, ratio } of results) {
    console.log(
      `${what.padEnd(48)} ${megabytesPerSecond.toFixed(0).padStart(6)} MB/s  ${ratio.toFixed(2)} of plain fs`,
    );
  }
} finally {
  await rm(folder, { recursive: true, force: true });
}
