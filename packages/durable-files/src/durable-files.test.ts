import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { afterAll, test } from 'vitest';
import {
  explainWriteFailure,
  hashFile,
  makeFolder,
  publishDirectory,
  stageDirectory,
  stageFile,
  writeFileAtomically,
} from './index.ts';

const root = await mkdtemp(join(tmpdir(), 'durable-files-'));
afterAll(() => rm(root, { recursive: true, force: true }));

const folder = () => mkdtemp(join(root, 'test-'));

test('a staged file is invisible until it is committed, and its digest is that of its bytes', async () => {
  const dir = await folder();
  const staged = await stageFile(join(dir, 'a', 'x.bin'));
  await staged.write(Buffer.from('first '));
  assert.deepEqual(await readdir(join(dir, 'a')), ['x.bin.partial']);
  await staged.write(Buffer.from('second'));
  const digest = await staged.commit();
  await staged.abort();
  assert.equal(await readFile(join(dir, 'a', 'x.bin'), 'utf8'), 'first second');
  assert.equal(digest.sha256, createHash('sha256').update('first second').digest('hex'));
  assert.deepEqual(await hashFile(join(dir, 'a', 'x.bin')), digest);
});

test('an aborted file leaves what stood there before', async () => {
  const dir = await folder();
  await writeFileAtomically(join(dir, 'x'), 'old');
  const staged = await stageFile(join(dir, 'x'));
  await staged.write(Buffer.from('new'));
  await staged.abort();
  assert.deepEqual(await readdir(dir), ['x']);
  assert.equal(await readFile(join(dir, 'x'), 'utf8'), 'old');
});

test('a full disk is DISK_FULL, a folder without permission NOT_WRITABLE; both name the file', () => {
  const explain = (code: string) => String(explainWriteFailure('out/x', Object.assign(new Error('system'), { code })));
  assert.match(explain('ENOSPC'), /out\/x: the disk is full/);
  assert.match(explain('EROFS'), /out\/x: the file cannot be written \(EROFS\)/);
  assert.match(explain('EIO'), /^Error: system/);
});

test('a published folder replaces the former one as a whole', async () => {
  const dir = await folder();
  const target = join(dir, 'model');
  for (const name of ['one', 'two']) {
    const staged = await stageDirectory(target);
    await writeFile(join(staged, name), name);
    await publishDirectory(staged, target);
    assert.deepEqual(await readdir(target), [name]);
  }
  assert.deepEqual(await readdir(dir), ['model']);
});

test('folders are made with those above them, by many at once, and never where they cannot be', async () => {
  const dir = await folder();
  const deep = join(dir, 'a', 'b', 'c');
  await Promise.all(Array.from({ length: 8 }, () => makeFolder(deep)));
  await makeFolder(deep);
  // Siblings under folders that are not there yet, one shortly after the other: a parent may come when a call has
  // failed.
  for (let round = 0; round < 30; round++) {
    const making: Promise<void>[] = [];
    for (let i = 0; i < 8; i++) {
      making.push(makeFolder(join(dir, 'round', String(round), 'a', String(i))));
      await new Promise((resolve) => setImmediate(resolve));
    }
    await Promise.all(making);
  }
  await writeFile(join(deep, 'file'), '');
  await assert.rejects(makeFolder(join(deep, 'file', 'more')), { code: 'FOLDER_IMPOSSIBLE' });
  await assert.rejects(makeFolder(join(deep, 'file')), { code: 'FOLDER_IMPOSSIBLE' });
  await assert.rejects(makeFolder(join(dir, 'x'.repeat(300))), { code: 'FOLDER_IMPOSSIBLE' });
  // Node's own recursive mkdir does not come back from here.
  if (process.platform === 'linux')
    await assert.rejects(makeFolder('/proc/stillhouse/run'), { code: 'FOLDER_IMPOSSIBLE' });
});

test('long files are written and hashed on other threads, several at once, whatever the pieces', async () => {
  const dir = await folder();
  await Promise.all(
    [1, 1 << 20, (1 << 20) + 1, 3 << 20, (8 << 20) + 1, 50 << 20].map(async (sizeBytes, n) => {
      const bytes = Buffer.alloc(sizeBytes, `file ${n}, not all zero`);
      const staged = await stageFile(join(dir, `${n}`));
      const piece = Buffer.alloc(1 << 19);
      for (let at = 0; at < bytes.length; at += piece.length) {
        // The same buffer again and again: what was written before must not change with it.
        const size = bytes.copy(piece, 0, at, at + piece.length);
        await staged.write(piece.subarray(0, size));
      }
      const digest = await staged.commit();
      assert.deepEqual(digest, { sha256: createHash('sha256').update(bytes).digest('hex'), sizeBytes });
      assert.deepEqual(await hashFile(join(dir, `${n}`)), digest);
    }),
  );
});

test('a process ends though its file threads are there', async () => {
  const dir = await folder();
  const script = `
    import { stageFile } from ${JSON.stringify(new URL('./index.ts', import.meta.url).href)};
    const staged = await stageFile(${JSON.stringify(join(dir, 'x'))});
    await staged.write(Buffer.alloc(9 << 20));
    if (process.argv[1] === 'commit') await staged.commit();
    console.log('done');`;
  for (const what of ['commit', 'leave'])
    assert.equal(
      execFileSync(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', script, what], {
        encoding: 'utf8',
        timeout: 60_000,
      }),
      'done\n',
    );
});

test('a write that fails on its thread is an error of the file, and nothing stays', async (t) => {
  if (process.platform !== 'linux') return t.skip('/dev/full is a Linux thing');
  const dir = await folder();
  const file = join(dir, 'x');
  // The kernel answers ENOSPC to every write there.
  await symlink('/dev/full', `${file}.partial`);
  const staged = await stageFile(file);
  const fill = async () => {
    for (let i = 0; i < 40; i++) await staged.write(Buffer.alloc(1 << 20));
    await staged.commit();
  };
  await assert.rejects(fill(), { code: 'DISK_FULL', message: /x: the disk is full/ });
  await staged.abort();
  assert.deepEqual(await readdir(dir), []);
});

/** The file threads that `work` sends something to. */
async function watchThreads(work: () => Promise<unknown>): Promise<readonly Worker[]> {
  const { postMessage } = Worker.prototype;
  const seen = new Set<Worker>();
  Worker.prototype.postMessage = function (...message) {
    seen.add(this);
    return postMessage.apply(this, message);
  };
  try {
    await work();
  } finally {
    Worker.prototype.postMessage = postMessage;
  }
  return [...seen];
}

async function terminate(thread: Worker): Promise<void> {
  // An idle thread does not keep the process alive, nor does waiting for its end.
  const alive = setInterval(() => {}, 1000);
  await thread.terminate();
  clearInterval(alive);
}

test('with its thread a file is lost, and said so: no digest of a part; the next file has a new thread', async () => {
  const dir = await folder();
  const staged = await stageFile(join(dir, 'x'));
  const threads = await watchThreads(() => staged.write(Buffer.alloc(3 << 20, 1)));
  assert.equal(threads.length, 1);
  await terminate(threads[0]!);
  const goOn = async () => {
    for (let i = 0; i < 40; i++) await staged.write(Buffer.alloc(1 << 20, 2));
    await staged.commit();
  };
  await assert.rejects(goOn(), { code: 'FILE_THREAD_ENDED', message: /the thread that does it has ended/ });
  await staged.abort();
  assert.deepEqual(await readdir(dir), []);

  const bytes = Buffer.alloc(30 << 20, 'other bytes');
  const sha256 = createHash('sha256').update(bytes).digest('hex');
  assert.equal((await writeFileAtomically(join(dir, 'y'), bytes)).sha256, sha256);
  const next = await stageFile(join(dir, 'x'));
  const [thread] = await watchThreads(() => next.write(bytes));
  const committing = next.commit();
  await Promise.all([assert.rejects(committing, { code: 'FILE_THREAD_ENDED' }), terminate(thread!)]);
  await next.abort();
  assert.deepEqual(await readdir(dir), ['y']);
  assert.deepEqual(await hashFile(join(dir, 'y')), { sha256, sizeBytes: bytes.length });
});

test('an aborted file is closed only when nothing writes to it any more', async () => {
  const dir = await folder();
  for (let round = 0; round < 20; round++) {
    const lost = await stageFile(join(dir, 'lost'));
    await lost.write(Buffer.alloc(7 << 20, 'lost'));
    await lost.abort();
    // Takes over the number of the closed file.
    const bytes = Buffer.alloc(2 << 20, `kept ${round}`);
    const { sha256 } = await writeFileAtomically(join(dir, 'kept'), bytes);
    assert.equal(sha256, createHash('sha256').update(bytes).digest('hex'));
    assert.ok(bytes.equals(await readFile(join(dir, 'kept'))));
  }
  assert.deepEqual(await readdir(dir), ['kept']);
});
