/**
 * How fast a teacher cache is written and read, against the plain file system and pyarrow with the same bytes.
 *   node --import tsx bench/cache-io.ts [ROUNDS] [FOLDER]      STILLHOUSE_PYTHON=python for the pyarrow lines
 * The shape is that of a 1.5B teacher at 2,185 bytes a position: rows of 512 positions, top 77, int8 hidden states of
 * width 1,536, in shards of 64 rows. Everything is done in turns, ROUNDS times (8), and of each the best round is
 * printed, with the processor time of the whole process in it. Only ratios mean something on another machine.
 *
 * Plain fs writes the very files of the cache from memory, in pieces of 1 MiB, and makes them as durable as the cache
 * does: under another name, the three of a shard at once, each synced, renamed, its folder synced. It reads them in
 * pieces of 1 MiB too: into new buffers of which the last 64 MiB are kept, as the reader of a cache does, whose rows
 * stay good as long as somebody holds them; and into one buffer again and again, which a cache's reader cannot do.
 */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { type FileHandle, mkdir, mkdtemp, open, readFile, rename, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { exportParquet } from '@stillhouse/cache-exchange';
import {
  type CacheDescription,
  describeSize,
  type LabelledRow,
  openCache,
  openCacheWriter,
  readManifest,
  type TeacherCache,
  verifyCache,
} from '@stillhouse/teacher-cache';

const ROWS = 320;
const TOKENS = 513;
const K = 77;
const WIDTH = 1536;
const VOCABULARY = 151_936;
const PIECE_BYTES = 1 << 20;
const KEPT_PIECES = 64;
const ROUNDS = Number(process.argv[2] ?? 8);

const description: CacheDescription = {
  teacher: {
    kind: 'weights',
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

interface Timing {
  readonly seconds: number;
  /** Of all threads of this process, user and system; not of the kernel's own, which take pages to the disk. */
  readonly processorSeconds?: number;
}

async function time(work: () => Promise<unknown>): Promise<Timing> {
  const before = process.cpuUsage();
  const start = performance.now();
  await work();
  const seconds = (performance.now() - start) / 1e3;
  const { user, system } = process.cpuUsage(before);
  return { seconds, processorSeconds: (user + system) / 1e6 };
}

const folder = await mkdtemp(join(process.argv[3] ?? tmpdir(), 'cache-io-'));
try {
  const rows = Array.from({ length: ROWS }, (_, i) => makeRow(i));
  const cachePath = join(folder, 'cache');
  const write = async (isOverlapping: boolean) => {
    const writer = await openCacheWriter(cachePath, description, { totalRows: ROWS });
    await writer.setScale('final', new Float32Array(WIDTH).fill(1));
    let former: Promise<void> | undefined;
    for (let index = 0; index < writer.shardCount; index++) {
      const writing = writer.writeShard(index, rows.slice(...writer.shardRange(index)));
      await (isOverlapping ? former : writing);
      former = writing;
    }
    await former;
    await writer.finish();
    await writer.close();
  };
  await write(true);
  const manifest = await readManifest(cachePath);
  const sizeBytes = describeSize(manifest).totalBytes;
  const shards = manifest.shards.map(({ files }) => Object.values(files).map((file) => join(cachePath, file!.path)));
  const paths = shards.flat();
  const contents = new Map(await Promise.all(paths.map(async (path) => [path, await readFile(path)] as const)));

  const plainFolder = join(folder, 'plain');
  const publishPlain = async (handle: FileHandle, target: string) => {
    await handle.sync();
    await handle.close();
    await rename(`${target}.partial`, target);
    const parent = await open(plainFolder, 'r');
    await parent.sync();
    await parent.close();
  };
  const writePlain = async (path: string, withHash: boolean) => {
    const bytes = contents.get(path)!;
    const target = join(plainFolder, basename(path));
    const handle = await open(`${target}.partial`, 'w');
    const hash = createHash('sha256');
    for (let done = 0; done < bytes.length; done += PIECE_BYTES) {
      const piece = bytes.subarray(done, done + PIECE_BYTES);
      await handle.write(piece);
      if (withHash) hash.update(piece);
    }
    hash.digest();
    await publishPlain(handle, target);
  };
  const writeAll = async (writeOne: (path: string) => Promise<void>) => {
    for (const files of shards) await Promise.all(files.map(writeOne));
  };
  const readPlain = async (nextBuffer: () => Buffer) => {
    for (const path of paths) {
      const handle = await open(path, 'r');
      for (let done = 0; ; ) {
        const { bytesRead } = await handle.read(nextBuffer(), 0, PIECE_BYTES, done);
        if (bytesRead === 0) break;
        done += bytesRead;
      }
      await handle.close();
    }
  };
  const oneBuffer = Buffer.alloc(PIECE_BYTES);
  const readFresh = async () => {
    const kept: Buffer[] = [];
    await readPlain(() => {
      const buffer = Buffer.allocUnsafeSlow(PIECE_BYTES);
      kept.push(buffer);
      if (kept.length > KEPT_PIECES) kept.shift();
      return buffer;
    });
  };
  const stream = async (cache: TeacherCache) => {
    let positions = 0;
    for await (const row of cache.rows()) positions += row.positions.length;
    if (positions !== ROWS * (TOKENS - 1)) throw new Error(`${positions} positions`);
  };
  const withCache = async (verifyOnRead: 'first-touch' | 'never', use: (cache: TeacherCache) => Promise<unknown>) => {
    const cache = await openCache(cachePath, { verifyOnRead });
    await use(cache);
    await cache.close();
  };

  const warm = await openCache(cachePath);
  await stream(warm);
  const empty = async (path: string) => {
    await rm(path, { recursive: true, force: true });
    await mkdir(path);
  };
  await mkdir(plainFolder);
  type Work = readonly [what: string, prepare: () => Promise<unknown>, work: () => Promise<unknown>];
  const nothing = async () => {};
  const reads: readonly Work[] = [
    ['read: plain fs, new buffers', nothing, readFresh],
    ['read: plain fs, one buffer', nothing, () => readPlain(() => oneBuffer)],
    ['read: teacher-cache, warm', nothing, () => stream(warm)],
    ['read: teacher-cache, opened, never hashed', nothing, () => withCache('never', stream)],
    ['read: teacher-cache, opened, hashed at first touch', nothing, () => withCache('first-touch', stream)],
    ['verify', nothing, () => verifyCache(cachePath)],
  ];
  const writes: readonly Work[] = [
    ['write: plain fs', () => empty(plainFolder), () => writeAll((path) => writePlain(path, false))],
    ['write: plain fs and sha256', () => empty(plainFolder), () => writeAll((path) => writePlain(path, true))],
    ['write: teacher-cache, shards overlapping', () => empty(cachePath), () => write(true)],
    ['write: teacher-cache, one shard after the other', () => empty(cachePath), () => write(false)],
  ];
  const best = new Map<string, Timing>();
  const note = (what: string, timing: Timing) => {
    const former = best.get(what);
    if (former === undefined || timing.seconds < former.seconds) best.set(what, timing);
  };
  const takeTurns = async (works: readonly Work[]) => {
    for (let round = 0; round < ROUNDS; round++) {
      for (const [what, prepare, work] of works) {
        await prepare();
        note(what, await time(work));
      }
    }
  };
  await takeTurns(reads);
  await warm.close();

  await withCache('never', async () => {
    const cache = await openCache(cachePath, { verifyOnRead: 'never', batchCacheBytes: 1 });
    const latencies: number[] = [];
    for (let i = 0; i < 1000; i++) {
      const start = performance.now();
      await cache.readRow((i * 97) % ROWS);
      latencies.push(performance.now() - start);
    }
    latencies.sort((a, b) => a - b);
    const [median, p95] = [latencies[500]!.toFixed(2), latencies[950]!.toFixed(2)];
    console.log(`one row at random (1.1 MB, all groups): median ${median} ms, 95 of 100 within ${p95} ms`);
    note('export to Parquet', await time(() => exportParquet(cache, join(folder, 'parquet'))));
    await cache.close();
  });

  const python = process.env.STILLHOUSE_PYTHON;
  if (python === undefined) console.log('STILLHOUSE_PYTHON is not set: no pyarrow lines');
  else {
    const script = `
import sys, time, os, pyarrow as pa, pyarrow.ipc, pyarrow.parquet as pq
folder, rounds, paths = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
def read():
    tables = []
    for path in paths:
        with open(path, 'rb') as source: tables.append(pa.ipc.open_file(source).read_all())
    return tables
def write(tables):
    for i, table in enumerate(tables):
        with open(os.path.join(folder, f'{i}.arrow'), 'wb') as out:
            with pa.ipc.new_file(out, table.schema) as writer: writer.write_table(table)
            out.flush(); os.fsync(out.fileno())
def write_parquet(tables):
    for i, table in enumerate(tables): pq.write_table(table, os.path.join(folder, f'{i}.parquet'), compression='zstd')
def read_parquet():
    for i in range(len(paths)): pq.read_table(os.path.join(folder, f'{i}.parquet'))
def best(work, rounds):
    least = (float('inf'), 0)
    for _ in range(rounds):
        start, before = time.perf_counter(), time.process_time()
        work()
        least = min(least, (time.perf_counter() - start, time.process_time() - before))
    return least
tables = read()
print(*best(read, rounds), *best(lambda: write(tables), rounds))
print(*best(lambda: write_parquet(tables), 2), *best(read_parquet, 2))`;
    const numbers = execFileSync(python, ['-c', script, folder, String(ROUNDS), ...paths], { encoding: 'utf8' })
      .trim()
      .split(/\s+/)
      .map(Number);
    for (const [i, what] of [
      'read: pyarrow IPC (no sha256)',
      'write: pyarrow IPC (no checks, no sha256), synced',
      'write: pyarrow Parquet, zstd, not synced',
      'read: pyarrow Parquet',
    ].entries()) {
      note(what, { seconds: numbers[2 * i]!, processorSeconds: numbers[2 * i + 1]! });
    }
  }
  await takeTurns(writes);

  console.log(
    `${(sizeBytes / 1e6).toFixed(0)} MB, ${ROWS} rows, ${ROWS * (TOKENS - 1)} positions of ` +
      `${(sizeBytes / ROWS / (TOKENS - 1)).toFixed(0)} bytes; best of ${ROUNDS}`,
  );
  console.log(`${''.padEnd(52)}   MB/s  of plain fs  cores  processor s/GB`);
  for (const [what, { seconds, processorSeconds = 0 }] of [...best].sort(([a], [b]) => (a < b ? -1 : 1))) {
    const base = best.get(what.startsWith('read') ? 'read: plain fs, new buffers' : 'write: plain fs')!;
    const columns = [
      (sizeBytes / 1e6 / seconds).toFixed(0).padStart(6),
      (base.seconds / seconds).toFixed(2).padStart(11),
      (processorSeconds / seconds).toFixed(2).padStart(6),
      (processorSeconds / (sizeBytes / 1e9)).toFixed(2).padStart(7),
    ];
    console.log(what.padEnd(52), ...columns);
  }
} finally {
  await rm(folder, { recursive: true, force: true });
}
