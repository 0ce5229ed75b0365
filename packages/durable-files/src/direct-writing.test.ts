import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { closeSync, constants, existsSync, openSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { mkdir, mkdtemp, open, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, type TestContext, test } from 'vitest';
import { stageFile, type WritePath } from './index.ts';
import { dropBytes, openPieceWriter } from './piece-writer.ts';
import { SLOT_BYTES } from './shared-slots.ts';

const WAYS: readonly WritePath[] = ['buffered', 'direct'];

const root = await mkdtemp(join(tmpdir(), 'direct-writing-'));
afterAll(() => rm(root, { recursive: true, force: true }));

const folder = () => mkdtemp(join(root, 'test-'));
const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');

/** Bytes in which a block that went astray is noticed. */
function someBytes(sizeBytes: number): Buffer {
  const bytes = Buffer.alloc(sizeBytes);
  for (let i = 0; i < sizeBytes; i++) bytes[i] = (i ^ (i >>> 8) ^ (i >>> 16)) + (i >>> 12);
  return bytes;
}

async function allowsDirect(dir: string): Promise<boolean> {
  const path = join(dir, 'tried');
  await writeFile(path, '');
  try {
    closeSync(openSync(path, constants.O_WRONLY | constants.O_DIRECT));
    return true;
  } catch {
    return false;
  } finally {
    await rm(path);
  }
}

/** Whether this process has a file open for direct writing. */
function isOpenDirectly(path: string): boolean {
  return readdirSync('/proc/self/fd').some((fd) => {
    try {
      const flags = /^flags:\s*(\d+)/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))!;
      return readlinkSync(`/proc/self/fd/${fd}`) === path && (Number.parseInt(flags[1]!, 8) & constants.O_DIRECT) !== 0;
    } catch {
      return false;
    }
  });
}

async function writeInPieces(path: string, bytes: Uint8Array, way: WritePath, pieceBytes: number) {
  const staged = await stageFile(path, way);
  try {
    for (let at = 0; at < bytes.length; at += pieceBytes) await staged.write(bytes.subarray(at, at + pieceBytes));
    return await staged.commit();
  } finally {
    await staged.abort();
  }
}

async function expectAllLengths(dir: string): Promise<void> {
  const around = (sizeBytes: number) => [-1, 0, 1].map((more) => sizeBytes + more);
  const lengths = [
    ...[0, 1, ...around(4096)],
    ...[1, 2, 4, 5, 9].flatMap((slots) => around(slots * SLOT_BYTES)),
    ...[4095, 4096, 4097, 8192].map((more) => 6 * SLOT_BYTES + more),
  ];
  const all = someBytes(Math.max(...lengths));
  for (const sizeBytes of lengths) {
    const bytes = all.subarray(0, sizeBytes);
    for (const way of WAYS) {
      const digest = await writeInPieces(join(dir, 'x'), bytes, way, 700_001);
      assert.deepEqual(digest, { sha256: sha256(bytes), sizeBytes }, `${way}, ${sizeBytes} bytes`);
      assert.ok(bytes.equals(await readFile(join(dir, 'x'))), `${way}, ${sizeBytes} bytes`);
    }
  }
  assert.deepEqual(await readdir(dir), ['x']);
}

test('files of every length around blocks and slots are the same bytes, written directly or not', async () => {
  await expectAllLengths(await folder());
});

test('a long file is written past the page cache where that was asked for, and only there', async (t) => {
  if (process.platform !== 'linux') return t.skip('O_DIRECT is looked for on Linux');
  const dir = await folder();
  if (!(await allowsDirect(dir))) return t.skip(`the file system of ${dir} refuses O_DIRECT`);
  for (const way of WAYS) {
    const path = join(dir, way);
    const staged = await stageFile(path, way);
    let isDirect = false;
    for (let i = 0; i < 12; i++) {
      await staged.write(Buffer.alloc(SLOT_BYTES, i));
      isDirect ||= isOpenDirectly(`${path}.partial`);
    }
    await staged.commit();
    assert.equal(isDirect, way === 'direct', way);
    assert.ok(!isOpenDirectly(path), 'nothing stays open');
  }
});

async function mountedAt(t: TestContext, dir: string, args: readonly string[], body: () => Promise<void>) {
  await mkdir(dir);
  const { status, stderr } = spawnSync('mount', [...args, dir], { encoding: 'utf8' });
  if (status !== 0) return t.skip(`mounting needs root on Linux (${stderr?.trim() ?? 'no mount'})`);
  try {
    await body();
  } finally {
    assert.equal(spawnSync('umount', [dir]).status, 0, 'unmounted');
  }
}

test('a file system that refuses O_DIRECT is written to through its page cache', async (t) => {
  const dir = join(await folder(), 'ramfs');
  await mountedAt(t, dir, ['-t', 'ramfs', 'ramfs'], async () => {
    assert.equal(await allowsDirect(dir), false);
    await expectAllLengths(dir);
  });
});

test('memory files are written directly or not, as the kernel has it', async (t) => {
  if (!existsSync('/dev/shm')) return t.skip('there is no /dev/shm');
  const dir = await mkdtemp('/dev/shm/direct-writing-');
  try {
    // Linux 6.6 began to accept O_DIRECT there.
    console.log(`/dev/shm ${(await allowsDirect(dir)) ? 'accepts' : 'refuses'} O_DIRECT`);
    await expectAllLengths(dir);
  } finally {
    await rm(dir, { recursive: true });
  }
});

test('a write that is refused for its memory is done through the page cache, and so are those after it', async (t) => {
  const dir = await folder();
  const path = join(dir, 'x');
  const bytes = someBytes(40_960);
  // No disk takes bytes from an odd address.
  const odd = Buffer.from(new ArrayBuffer(40_961), 1);
  odd.set(bytes);
  if (await allowsDirect(dir)) {
    await writeFile(path, '');
    const direct = await open(path, constants.O_WRONLY | constants.O_DIRECT);
    const refusal = await direct.write(odd, 0, 4096, 0).catch((error: NodeJS.ErrnoException) => error.code);
    await direct.close();
    console.log(
      refusal === 'EINVAL' ? 'refused with EINVAL' : 'this file system takes any memory: nothing was refused',
    );
  }
  const handle = await open(path, 'w');
  const pieces = openPieceWriter(handle, path, 'direct');
  const sizes = [8192, 8192, 4096, 16_384, 4095, 1];
  let at = 0;
  const writing = sizes.map((size) => {
    at += size;
    return pieces.write(odd.subarray(at - size, at));
  });
  await Promise.all(writing);
  await pieces.end();
  await handle.close();
  assert.ok(bytes.equals(await readFile(path)), 'other bytes');
});

test('without memory that a disk takes bytes from, files are the same', async () => {
  const dir = await folder();
  const script = `
    import { stageFile } from ${JSON.stringify(new URL('./index.ts', import.meta.url).href)};
    // As with --jitless, under which no loader of TypeScript runs.
    delete globalThis.WebAssembly;
    const staged = await stageFile(${JSON.stringify(join(dir, 'x'))}, 'direct');
    for (let i = 0; i < 10; i++) await staged.write(Buffer.alloc(500_000, i));
    await staged.commit();`;
  const { status, stderr } = spawnSync(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', script], {
    encoding: 'utf8',
  });
  assert.equal(status, 0, stderr);
  const expected = Buffer.concat(Array.from({ length: 10 }, (_, i) => Buffer.alloc(500_000, i)));
  assert.ok(expected.equals(await readFile(join(dir, 'x'))), 'other bytes');
});

async function expectFull(dir: string): Promise<void> {
  for (const way of WAYS) {
    const path = join(dir, 'x');
    await assert.rejects(writeInPieces(path, Buffer.alloc(24 << 20, 1), way, 3 << 20), {
      code: 'DISK_FULL',
      message: /x: the disk is full/,
    });
    assert.ok(!(await readdir(dir)).some((name) => name.startsWith('x')), 'nothing stays');
    const bytes = someBytes(5 << 20);
    assert.equal((await writeInPieces(path, bytes, way, 1 << 20)).sha256, sha256(bytes));
    assert.ok(bytes.equals(await readFile(path)), 'other bytes');
    await rm(path);
  }
}

describe('a disk that becomes full is DISK_FULL, written directly or not, and works again with room', async () => {
  const dir = await folder();
  test('tmpfs', (t) =>
    mountedAt(t, join(dir, 'tmpfs'), ['-t', 'tmpfs', '-o', 'size=13001k', 'tmpfs'], () =>
      expectFull(join(dir, 'tmpfs')),
    ));
  test('ext4', async (t) => {
    const image = join(dir, 'image');
    await writeFile(image, '');
    const made = spawnSync('sh', ['-c', `truncate -s 16M ${image} && mkfs.ext4 -q ${image}`]);
    if (made.status !== 0) return t.skip('there is no mkfs.ext4');
    await mountedAt(t, join(dir, 'ext4'), ['-o', 'loop', image], () => expectFull(join(dir, 'ext4')));
  });
});

test('a device that is full is DISK_FULL and refuses O_DIRECT', async (t) => {
  if (process.platform !== 'linux') return t.skip('/dev/full is a Linux thing');
  const dir = await folder();
  await symlink('/dev/full', join(dir, 'x.partial'));
  await assert.rejects(writeInPieces(join(dir, 'x'), Buffer.alloc(12 << 20), 'direct', 1 << 20), { code: 'DISK_FULL' });
  assert.deepEqual(await readdir(dir), []);
});

test('after a write that ended early what is left of the pieces is written', () => {
  const bytes = someBytes(30);
  const pieces = [bytes.subarray(0, 10), bytes.subarray(10, 11), bytes.subarray(11, 30)];
  for (let count = 0; count <= 30; count++) {
    const left = dropBytes(pieces, count);
    assert.deepEqual(Buffer.concat(left), bytes.subarray(count), `${count}`);
    assert.ok(
      left.every((piece) => piece.length > 0),
      'no piece of nothing, which would be written for ever',
    );
  }
});
